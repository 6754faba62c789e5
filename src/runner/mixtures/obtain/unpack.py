"""Unpacking a downloaded archive: all of it, or nothing."""

from __future__ import annotations

import shutil
import tarfile
import uuid
import zipfile
from pathlib import Path

from runner.errors import RunFailed, UserError


def unpack(archive: Path, target: Path, marker: str) -> None:
    """Unpack a tar or zip file, and move the folder that holds `marker` into `target`, beside what is there.

    Members that would leave the folder (absolute paths, `..`, links outwards, devices) are refused.

    Args:
        marker: a path that is in the wanted folder, at most three folders deep in the archive.

    Raises:
        RunFailed: the file is damaged. UserError: it holds no such folder, or a file in the way is another one.
    """
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f".unpack.{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        _extract(archive, temporary)
        depths = ["", "*/", "*/*/", "*/*/*/"]
        found = next((f for depth in depths for f in sorted(temporary.glob(f"{depth}{marker}"))), None)
        if found is None:
            what = f"there is no {marker} in {archive}"
            raise UserError(what, "it may be another archive than the published one: look at what is in it")
        folder = found.parents[len(Path(marker).parts) - 1]
        for item in folder.iterdir():
            place = target / item.name
            if place.is_dir():
                shutil.rmtree(place)
            item.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    damaged = f"the file is damaged: remove {archive}, and run the command again"
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                outside = [n for n in file.namelist() if n.startswith(("/", "\\")) or ".." in Path(n).parts]
                if outside:
                    raise UserError(
                        f"{archive} would write outside of its folder: {outside[0]}", "nothing was unpacked"
                    )
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} would write outside of its folder: {error}", "nothing was unpacked") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise RunFailed(f"{archive} cannot be unpacked: {error}", damaged) from error
