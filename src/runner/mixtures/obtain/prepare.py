"""From nothing to a data set that is there, fast to read, and looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from runner.errors import RunFailed, UserError
from runner.mixtures.base import Mixture
from runner.mixtures.obtain.download import fetch
from runner.mixtures.obtain.unpack import unpack
from runner.mixtures.published import Download, Preparable, Progress

DOWNLOADS = ".downloads"
"""Folder, in the data set's, of files that are not unpacked yet."""


def obtain(
    mixture: Mixture, target: Path, source: str | None, keep: bool, say: Callable[[str], None], progress: Progress
) -> None:
    """Download and unpack what is missing.

    Args:
        target: the data set's folder. source: where to take the published files from instead: a folder, or the start of
            a URL. keep: leave the archives after they are unpacked.

    Raises:
        UserError: a licence forbids the download: with what to fetch oneself, and where to put it.
    """
    assert isinstance(mixture, Preparable)
    published = mixture.published
    if published.hub and source is None:
        say(f"downloading the parquet files of {published.hub} into {target}")
        _from_hub(published.hub, target)
        return
    if not published.downloads:
        steps = "\n  ".join(f"{i}. {step.format(folder=target)}" for i, step in enumerate(published.by_hand, 1))
        option = getattr(mixture, "option", "")
        what = f"'{option}' may not be downloaded by a program: its owners want to be asked, or offer no plain file"
        raise UserError(what, f"{steps}\n  then run this command again: it converts and verifies", published.home)
    for file in published.downloads:
        if file.unpack is None and (target / file.name).is_file():
            continue
        path = _get(file, target, source, say, progress)
        if file.unpack is not None:
            say(f"unpacking {path.name} into {target}")
            unpack(path, target, file.unpack)
            if not keep and path.parent.name == DOWNLOADS:
                path.unlink()
    if (target / DOWNLOADS).is_dir() and not any((target / DOWNLOADS).iterdir()):
        (target / DOWNLOADS).rmdir()


def _get(file: Download, target: Path, source: str | None, say: Callable[[str], None], progress: Progress) -> Path:
    """The file on disk, from a folder of the user's, or over http."""
    if source is not None and urlsplit(source).scheme not in ("http", "https"):
        path = Path(source).expanduser() / file.name
        if not path.is_file():
            raise UserError(f"there is no {file.name} in {source}", f"it is published at {file.url}")
        if file.unpack is not None:
            return path
        file = replace(file, url=path.resolve().as_uri())
    elif source is not None:
        file = replace(file, url=f"{source.rstrip('/')}/{file.name}")
    say(f"downloading {file.url}")
    folder = target / DOWNLOADS if file.unpack is not None else target
    return fetch(file, folder, lambda done, total: progress(file.name, done, total))


def _from_hub(name: str, target: Path) -> None:
    """All parquet files of a data set of the hub; huggingface_hub goes on with files that were begun."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, repo_type="dataset", local_dir=target, allow_patterns=["*.parquet"])
    except Exception as error:  # of several libraries: no network, gated, not found
        said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = f"'{name}' cannot be downloaded from the Hugging Face hub: {' '.join(said[:2])}"  # status, and meaning
        raise RunFailed(what, "check the network (and HF_HUB_OFFLINE); the same command goes on") from error
