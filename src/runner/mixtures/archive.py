"""What the published archives have in common: finding them, listing their files, reading one safely."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import Problem, UserError
from runner.mixtures.locate import locate, missing, places

if TYPE_CHECKING:
    from PIL.Image import Image

    from runner.mixtures.dense_archive import DenseArchive

SCRIPT = "nyud/expand.py"
"""A script under `data_root` that writes NYUv2 in either layout."""


def missing_archive(mixture: DenseArchive) -> Problem:
    """What to say where the archive is not there."""
    path, data_root, see = mixture.path, mixture.data_root, f"runner data prepare {mixture.option}"
    get = f"{mixture.published.get} and put it at one of these places, or point mixture.path at it"
    script = locate(SCRIPT, data_root) if mixture.script else None
    if script is not None:
        target = shlex.quote(str(_short(places(path, data_root)[-2:][0])))  # ./data: data_root may be read-only
        make = f"make it: python {shlex.quote(str(script))} --out {target} --layout {mixture.script}"
        get, see = f"{make}; or {get}", f"runner show mixture/{mixture.option}"
    return missing(mixture.what, path, data_root, get, marker=mixture.marker, see=see)


def lacking_folders(what: str, option: str, root: Path, needed: Mapping[str, Sequence[str]]) -> list[Problem]:
    """One problem that names every folder that is not there.

    Args:
        needed: task (or "") → folders; "a|b" where either of two will do.
    """
    gone: dict[str, list[str]] = {}
    for task, folders in needed.items():
        for folder in folders:
            if not any((root / part).is_dir() for part in folder.split("|")):
                gone.setdefault(folder, []).append(task)
    if not gone:
        return []
    lines = []
    for folder, tasks in gone.items():
        for_whom = " and ".join(f"'{t}'" for t in tasks if t)
        plural = "s" if len([t for t in tasks if t]) > 1 else ""
        verb = "need" if plural else "needs"
        named = " or ".join(f"'{part}'" for part in folder.split("|"))
        lines.append(f"no folder {named}" + (f", which task{plural} {for_whom} {verb}" if "" not in tasks else ""))
    lost = {task for tasks in gone.values() for task in tasks}
    hint = "unpack the whole archive"
    if "" not in lost:
        hint += f", or leave out what it lacks: tasks=[{','.join(t for t in needed if t and t not in lost)}]"
    return [Problem(f"{what} in {root} has {'; '.join(lines)}", hint, f"runner show mixture/{option}")]


def _short(path: Path) -> Path:
    """Relative to the current directory where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def match_files(
    root: Path, ids: Sequence[str], patterns: Mapping[str, Sequence[str]], partial: Sequence[str], see: str
) -> dict[str, list[str | None]]:
    """The file of each id, by annotation; None for one that has none.

    Args:
        patterns: annotation → paths in `root` with the id in place of {}, the preferred one first. Ids may hold
            folders.
        partial: annotations of which files may be missing.

    Raises:
        UserError: all files that are missing although they may not.
    """
    inside: dict[str, frozenset[str]] = {}

    def exists(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in inside:
            place = root / folder
            inside[folder] = frozenset(os.listdir(place)) if place.is_dir() else frozenset()
        return name in inside[folder]

    found: dict[str, list[str | None]] = {}
    lost = []
    for name, choices in patterns.items():
        split = [choice.split("{}") for choice in choices]
        files = [next((p for parts in split if exists(p := i.join(parts))), None) for i in ids]
        found[name] = files
        gone = [i for i, file in zip(ids, files, strict=True) if file is None]
        if gone and name not in partial:
            example = root / choices[0].replace("{}", gone[0])
            lost.append(f"{len(gone)} of {len(ids)} examples have no file in {example.parent}, such as {example.name}")
    if lost:
        raise UserError(
            "; ".join(lost),
            "unpack the whole archive again; mixture.partial=true if these images have no such label",
            see,
        )
    return found


def read_list(path: Path) -> list[str]:
    """The ids in a list of one published split.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        ids = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "unpack the whole archive again") from error
    if not ids:
        raise UserError(f"{path} names no image", "unpack the whole archive again")
    return ids


def numbered(folder: Path) -> list[str]:
    """The names of the .npy files in a folder, as numbers are counted.

    Raises:
        UserError: there is none.
    """
    names = [path.stem for path in folder.glob("*.npy")]
    if not names:
        raise UserError(f"there is no .npy file in {folder}", "unpack the whole archive again")
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def read_image(path: Path, mode: str | None = None) -> Image:
    """A JPEG or PNG file, converted to `mode` if given.

    Raises:
        UserError: the file cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as file:
            file.load()
            return file if mode in (None, file.mode) else file.convert(mode)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise UserError(f"cannot read {path}: {error}", "the file is damaged: unpack the archive again") from error


def read_rgb(path: Path) -> Image:
    """A JPEG or PNG file as RGB."""
    return read_image(path, "RGB")


def read_planes(path: Path) -> np.ndarray:
    """A JPEG or PNG file as (3, H, W) uint8."""
    return np.stack([np.asarray(band) for band in read_image(path, "RGB").split()])


def read_plane(path: Path) -> np.ndarray:
    """An image of one channel, or a .npy file, as (H, W)."""
    if path.suffix == ".npy":
        return plane(read_array(path), path)
    return plane(np.asarray(read_image(path)), path)


def read_array(path: Path) -> np.ndarray:
    """A .npy file; pickled objects are refused.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}", "the file is damaged: unpack the archive again") from error


def read_float_image(path: Path) -> Image:
    """A .npy file (H, W, 3) of floats in [0, 1], or of bytes, as RGB: the 8 bits that it was made from.

    Raises:
        UserError: values of another range.
    """
    from PIL import Image

    image = vectors(read_array(path), path)
    if image.dtype != np.uint8:
        image = to_bytes(image, str(path))
    return Image.fromarray(np.ascontiguousarray(image))


def to_bytes(image: np.ndarray, what: str) -> np.ndarray:
    """Floats in [0, 1] as uint8.

    Raises:
        UserError: values of another range, with `what` they are of.
    """
    scaled = image * np.float32(255)
    if not (scaled.min() >= -1 and scaled.max() <= 256):
        raise UserError(f"{what} has values outside [0, 1]", "images are stored as float in [0, 1] or as uint8")
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file (version 5, which holds numbers and texts only).

    Raises:
        UserError: the file cannot be read.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path)
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, MatReadError) as error:
        raise UserError(f"cannot read {path}: {error}", "the file is damaged: unpack the archive again") from error


def plane(array: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) from (H, W) or (H, W, 1).

    Raises:
        UserError: another shape.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2:
        raise UserError(f"{path} has shape {array.shape}, not (height, width)")
    return array


def vectors(array: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, 3), of that shape and no other.

    Raises:
        UserError: another shape.
    """
    if array.ndim != 3 or array.shape[2] != 3:
        raise UserError(f"{path} has shape {array.shape}, not (height, width, 3)")
    return array


def names_of(files: Iterable[str | None]) -> list[str]:
    """Files of which none is missing."""
    return [file for file in files if file is not None]
