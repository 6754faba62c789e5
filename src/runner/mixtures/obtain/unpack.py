"""Unpacking a downloaded archive: all of it, or nothing."""

from __future__ import annotations

import shutil
import tarfile
import uuid
import zipfile
from pathlib import Path, PurePosixPath

from runner.errors import RunFailed, UserError


def unpack(archive: Path, target: Path, marker: str) -> None:
    """Unpack a tar or zip file, and move the folder that holds `marker` into `target`, beside what is there.

    An archive with members that might leave the folder (absolute paths, `..`, links with `..`, devices) is refused.

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
                _refuse(archive, [name for name in file.namelist() if _leads_out(name)])
                file.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                _refuse(archive, [member.name for member in tar if _is_unsafe(member)])
                # Python before 3.11.4 has no filters; later ones strip owners and set-user bits as well
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise RunFailed(f"{archive} cannot be unpacked: {error}", damaged) from error


def _refuse(archive: Path, names: list[str]) -> None:
    if names:
        raise UserError(f"{archive} would write outside of its folder: {names[0]}", "nothing was unpacked")


def _is_unsafe(member: tarfile.TarInfo) -> bool:
    """A link with `..` is, wherever it leads: what it passes may be a link itself."""
    if member.issym() or member.islnk():
        return _leads_out(member.name) or _leads_out(member.linkname)
    return _leads_out(member.name) or not (member.isreg() or member.isdir())


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts
