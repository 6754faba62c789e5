"""The files of `runner.mixtures.folders`: which image and which map belong together, and what they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.errors import UserError
from runner.mixtures.images import to_rgb
from runner.mixtures.sources import IMAGES

if TYPE_CHECKING:
    from PIL.Image import Image

ANY = (*IMAGES, ".npy")
"""Kinds of files that are read."""


class Listing:
    """What lies in the folders below `root`; each is looked into once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, dict[str, list[str]]] = {}

    def inside(self, folder: str) -> dict[str, list[str]]:
        """Stem → the names of files of any kind that is read."""
        if folder not in self._folders:
            place = self.root / folder
            found = self._folders[folder] = {}
            for file in sorted(place.iterdir()) if place.is_dir() else ():
                if file.suffix.lower() in ANY and not file.name.startswith("."):
                    found.setdefault(file.stem, []).append(file.name)
        return self._folders[folder]

    def file_of(self, place: str, name: str) -> str | None:
        """The file of one image, relative to `root`; None where there is none.

        Raises:
            UserError: there are several.
        """
        path = place.replace("{}", name) if "{}" in place else f"{place}/{name}"
        folder, _, last = path.rpartition("/")
        if "{}" in place and Path(path).suffix.lower() in ANY:
            return path if last in self.inside(folder).get(Path(last).stem, ()) else None
        files = self.inside(folder).get(last, [])
        if len(files) > 1:
            what = f"{self.root / folder} has {' and '.join(files)}"
            raise UserError(what, f"which one is meant? such as {place}/{{}}.png")
        return f"{folder}/{files[0]}" if files else None

    def stems(self, place: str) -> list[str]:
        """The names of the images at a place, sorted; with the folders they are in, where it only holds folders.

        Raises:
            UserError: there is none.
        """
        folder, _, pattern = place.rpartition("/") if "{}" in place else (place, "", "{}")
        before, _, after = pattern.partition("{}")
        whole = Path(f"x{after}").suffix.lower() in ANY
        wanted = re.compile(re.escape(before) + "(.+)" + re.escape(after))

        def matching(inside: str) -> list[str]:
            below = f"{inside}/" if inside else ""
            listed = self.inside(f"{folder}/{inside}" if folder and inside else folder or inside)
            files = [below + file for stem, found in listed.items() for file in (found if whole else [stem])]
            return [match[1] for file in files if (match := wanted.fullmatch(file))]

        names = matching("")
        if not names:  # names with folders: sequence/frame
            top = self.root / folder
            inner = sorted(p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_dir())
            names = [name for inside in inner if not inside.startswith(".") for name in matching(inside)]
        if not names:
            raise UserError(f"there is no image at {self.root / place}", f"kinds that are read: {', '.join(ANY)}")
        return sorted(names)


def read_picture(file: Path) -> Image:
    """An image of any kind as RGB, upright as the camera says.

    Raises:
        UserError: the file cannot be read.
    """
    from PIL import Image

    if file.suffix == ".npy":
        return to_rgb(Image.fromarray(_array(file)))
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {file}: {error}", "replace it, or take it out") from error


def stored_map(file: Path) -> np.ndarray:
    """What a map's file holds, (H, W) or (H, W, C): palette images as their numbers."""
    from PIL import Image

    if file.suffix == ".npy":
        array = _array(file)
        return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    try:
        with Image.open(file) as image:
            image.load()
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {file}: {error}", "replace it, or take it out") from error
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 2 else array  # grey with transparency


def _array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {file}: {error}", "replace it, or take it out") from error
    if array.ndim not in (2, 3):
        raise UserError(f"{file} has shape {array.shape}, not (height, width) or (height, width, channels)")
    return array
