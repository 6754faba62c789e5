"""Where the maps of a user's own images lie and what their values mean: `mixture.maps.NAME` of dense folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.config.kinds import NonNegativeInt, PositiveFloat
from runner.errors import Problem, UserError
from runner.mixtures.base import Annotation
from runner.mixtures.sources import check_mapping
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_normals

Kind = Literal["classes", "depth", "inverse_depth", "normals", "edge", "mask", "values"]

APPLIES = {
    "first": ("classes",),
    "unlabelled": ("classes", "depth", "inverse_depth", "edge", "mask", "values"),
    "scale": ("depth", "inverse_depth", "values"),
    "threshold": ("edge", "mask"),
}
"""Key → the kinds that it says something about."""


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """One annotation's files.

    Attributes:
        files: pattern in the data set's folder, with {} for the id of an example; "a|b" for either of two.
        kind: classes; depth (metres, smaller when an example is zoomed in); inverse_depth (larger then); normals
            (n = 2 v / 255 - 1, or floats); edge (a pixel wide, kept when images shrink); mask (yes or no per pixel);
            values (any numbers to regress).
        first: stored value of class 0.
        unlabelled: stored values that mean "no label"; None stands for 255 of classes, for none of the others. Depth
            is also unknown where it is 0, negative or not finite.
        scale: what a stored value of 1 is: 0.001 for depth in millimetres.
        threshold: smallest stored value that is an edge or inside of a mask: 1 reads 0/1 and 0/255 alike.
    """

    files: str
    kind: Kind
    first: NonNegativeInt = 0
    unlabelled: list[float] | None = None
    scale: PositiveFloat = 1.0
    threshold: PositiveFloat = 1.0

    @property
    def pattern(self) -> Pattern | None:
        """Its files; None where they are not written correctly."""
        return parse_pattern("", self.files)[0]

    @property
    def ignored(self) -> tuple[int, ...]:
        """Stored values that are no class."""
        return (255,) if self.unlabelled is None else tuple(int(value) for value in self.unlabelled)

    @property
    def annotation(self) -> Annotation:
        """What it has to offer to a task."""
        if self.kind == "classes":
            return Annotation("dense", "classification", 0)  # any number: the task's
        return Annotation("dense", "classification" if self.kind in ("edge", "mask") else "regression")

    def layer(self, num_classes: int) -> Layer:
        """How its stored values become a target."""
        unknown = tuple(self.unlabelled or ())
        if self.kind == "classes":
            return Layer("classes", ClassDecoder(num_classes, first=self.first, unlabelled=self.ignored))
        if self.kind == "normals":
            return Layer("normals", decode_normals)
        if self.kind in ("edge", "mask"):
            return Layer("edge" if self.kind == "edge" else "mask", Above(self.threshold, unknown))
        if self.kind == "values":
            return Layer("mask", Scaled(self.scale, unknown))
        plain = self.scale == 1.0 and not unknown
        decode = decode_depth if plain else Scaled(self.scale, unknown, positive=True)
        return Layer("depth" if self.kind == "depth" else "inverse_depth", decode)


@dataclass(frozen=True)
class Scaled:
    """Stored numbers times `scale`; NaN for unknown ones, and for those not above 0 where all are `positive`."""

    scale: float
    unknown: tuple[float, ...]
    positive: bool = False

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        values = stored.astype(np.float32, order="C") * np.float32(self.scale)
        lost = ~np.isfinite(values)
        if self.positive:
            lost |= values <= 0
        if self.unknown:
            lost |= np.isin(stored, self.unknown)
        values[lost] = np.nan
        return values


@dataclass(frozen=True)
class Above:
    """1 where the stored value reaches `threshold`, else 0; NaN for unknown ones."""

    threshold: float
    unknown: tuple[float, ...]

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        values = (stored >= self.threshold).astype(np.float32)
        if self.unknown:
            values[np.isin(stored, self.unknown)] = np.nan
        return values


@dataclass(frozen=True)
class Pattern:
    """Paths in a folder with `{}` for an id and perhaps `{split}`; the preferred one first."""

    texts: tuple[str, ...]

    @property
    def by_split(self) -> bool:
        """Whether it says where a split lies."""
        return any("{split}" in text for text in self.texts)

    def choices(self, word: str) -> tuple[str, ...]:
        """The patterns with what a split is called filled in."""
        return tuple(text.replace("{split}", word) for text in self.texts)

    def folders(self, word: str) -> str:
        """The folders in which files may lie, "a|b" for either of two."""
        return "|".join(dict.fromkeys(text.partition("{}")[0].rpartition("/")[0] or "." for text in self.choices(word)))

    def find(self, root: Path, word: str) -> list[str]:
        """The ids of all files that match, sorted.

        Raises:
            UserError: there is none.
        """
        found: set[str] = set()
        near = ""
        for text in self.choices(word):
            before, _, after = text.partition("{}")
            top = root / before.rpartition("/")[0]
            fits = re.compile(re.escape(before) + r"(.+)" + re.escape(after))
            for place, folders, files in os.walk(top):
                folders[:] = [name for name in folders if not name.startswith(".")]
                relative = Path(place).relative_to(root).as_posix()
                for name in files:
                    path = name if relative == "." else f"{relative}/{name}"
                    if not name.startswith(".") and (match := fits.fullmatch(path)):
                        found.add(match[1])
                    near = near or path
        if not found:
            shown = " or ".join(self.choices(word))
            has = f" (there is {near})" if near else ""
            raise UserError(f"no file in {root} matches '{shown}'{has}", "compare mixture.images with the names there")
        return sorted(found)


def parse_pattern(where: str, text: str) -> tuple[Pattern | None, list[Problem]]:
    """A pattern, or what is wrong with it."""
    texts = tuple(part.strip() for part in text.split("|"))
    for part in texts:
        rest = part.replace("{split}", "")
        if rest.count("{}") != 1 or "{" in rest.replace("{}", "") or "}" in rest.replace("{}", ""):
            what = f"'{where}' is '{part}': it needs one {{}} where the id of an example stands"
            return None, [Problem(what, "such as images/{}.jpg; {split} stands for what mixture.splits calls a split")]
        if part.startswith("/") or ".." in part.split("/"):
            return None, [Problem(f"'{where}' is '{part}': it must lie in mixture.path", "such as images/{}.jpg")]
    return Pattern(texts), []


def parse_maps(configs: Mapping[str, Any]) -> tuple[dict[str, MapFiles], list[Problem]]:
    """The maps that are written correctly, and what is wrong with the others; null leaves one out."""
    maps: dict[str, MapFiles] = {}
    problems = []
    for name, config in configs.items():
        where = f"mixture.maps.{name}"
        if config is None:
            continue
        if not isinstance(config, Mapping):
            problems.append(Problem(f"'{where}' must be a mapping with files and kind, not {config!r}"))
            continue
        wrong = check_mapping(MapFiles, where, config)
        if not wrong:
            wrong = parse_pattern(f"{where}.files", config["files"])[1]
            for key, kinds in APPLIES.items():
                if key in config and config["kind"] not in kinds:
                    what = f"'{where}.{key}' says nothing about maps of kind '{config['kind']}'"
                    wrong.append(Problem(what, f"leave it out: it is for {', '.join(kinds)}"))
        if not wrong:
            maps[name] = MapFiles(**config)
        problems += wrong
    return maps, problems
