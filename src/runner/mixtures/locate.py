"""Where data lies, and what to say when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.errors import Problem

NEEDS_NOTHING = "mixture=rooms needs no files"


def places(path: str, data_root: str) -> list[Path]:
    """Where `path` is looked for, in order: an absolute path is itself; else under `data_root`, ./data, and here."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return [given]
    here = Path.cwd()
    roots = [Path(data_root).expanduser(), here / "data", here]
    return list(dict.fromkeys((root if root.is_absolute() else here / root) / given for root in roots))


def locate(path: str, data_root: str, marker: str | Sequence[str] = "") -> Path | None:
    """The first of `places` that exists, None if there is none.

    Args:
        path: of a file or folder. data_root: where the user keeps data.
        marker: a path that must exist inside, which tells the right folder from one that only has its name; of several,
            any one of them.
    """
    markers = [marker] if isinstance(marker, str) else marker
    for place in places(path, data_root):
        if any((place / name if name else place).exists() for name in markers):
            return place
    return None


def missing(what: str, path: str, data_root: str, get: str, *, marker: str = "", see: str = "") -> Problem:
    """The one message for data that is not there.

    Args:
        what: names the data, such as "the NYUD_MT archive".
        path, data_root, marker: what `locate` was asked for.
        get: how to get it: where to download it, or a command that makes it.
        see: a command that shows more, such as `runner show mixture/nyud`.
    """
    looked = places(path, data_root)
    near = [place for place in looked if marker and place.exists()]
    sought = f" ({marker} in it)" if marker else ""
    text = f"{what} is not there: looked for {_listed(looked)}{sought}"
    if near:
        text += f"; {near[0]} exists, but has no {marker}"
    return Problem(text, f"{get}; {NEEDS_NOTHING}", see)


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:-1])) + (" and " if len(paths) > 1 else "") + str(paths[-1])
