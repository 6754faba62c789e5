"""The maps of `runner.mixtures.folders` as its YAML names them, found and read.

maps:
  segmentation: "{split}/masks"                                          # class numbers as they are stored
  segmentation: {files: "masks/{}_mask.png", values: [0, 255]}           # stored value of each class, in order
  segmentation: {files: masks, colours: [[0, 0, 0], [128, 64, 128]]}     # colour of each class, in order
  depth: {files: "{split}/depth", scale: 0.001}                          # stored millimetres
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from runner.config.kinds import PositiveFloat
from runner.config.source import bases, define
from runner.errors import Problem, UserError, suggest
from runner.mixtures.folder_files import stored_map
from runner.mixtures.sources import check_mapping
from runner.mixtures.views import ClassDecoder, Layer, MapKind, decode_depth, decode_edge, decode_normals

LOSSY = (".jpg", ".jpeg", ".webp")
UNLABELLED = 255
"""The stored class of an unlabelled pixel, where `values` or `colours` say what the others are."""

BY_TASK: Mapping[str, MapKind] = {
    "Segmentation": "classes",
    "Depth": "depth",
    "Normals": "normals",
    "Edge": "edge",
    "Saliency": "mask",
    "PixelRegression": "mask",
}
"""What kind of map a task of each class reads, also one derived from it."""


@dataclass(frozen=True, kw_only=True)
class MapKeys:
    """What a mapping under `maps` may hold.

    Attributes:
        files: where the maps are, see `runner.mixtures.folders.Folders`.
        kind: classes, depth, inverse_depth, normals, edge or mask; None takes what the task reads.
        values: classes: the stored value of each class, in order; None takes stored values as class numbers.
        colours: classes: the colour [red, green, blue] of each class, in order.
        unlabelled: stored values that mean "no label"; None stands for 255 of classes, for none of other maps. Depth
            is also unknown where it is 0 or below.
        scale: depth and numbers: what one stored unit is, such as 0.001 for millimetres; None for floats as they are.
    """

    files: str
    kind: str | None = None
    values: list[int] | None = None
    colours: list[Any] | None = None
    unlabelled: list[float] | None = None
    scale: PositiveFloat | None = None


@dataclass(frozen=True)
class Map:
    """The maps of one task. Attributes: see `MapKeys`; `numbers`: the task predicts numbers, not yes or no."""

    task: str
    files: str
    kind: MapKind
    num_classes: int = 0
    values: tuple[int, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    unlabelled: tuple[float, ...] = ()
    scale: float | None = None
    numbers: bool = False

    @property
    def layer(self) -> Layer:
        """How what `read` gives becomes a target."""
        if self.kind == "classes":
            unlabelled = (UNLABELLED,) if self._translated else self.unlabelled
            return Layer("classes", ClassDecoder(self.num_classes, unlabelled=[int(value) for value in unlabelled]))
        if self.kind == "normals":
            return Layer("normals", decode_normals)
        if self.kind in ("depth", "inverse_depth"):
            return Layer(self.kind, decode_depth)
        return Layer(self.kind, decode_number if self.numbers or self.unlabelled else decode_edge)

    def read(self, file: Path) -> np.ndarray:
        """The stored map (H, W), for normals (3, H, W).

        Raises:
            UserError: it cannot be read, or is not what it should be.
        """
        stored = stored_map(file)
        if self.kind == "normals":
            if stored.ndim != 3 or stored.shape[2] < 3:
                raise UserError(f"{file} has one channel, normals have three")
            return np.ascontiguousarray(stored[..., :3].transpose(2, 0, 1))
        if self.kind == "classes":
            return self._classes(stored, file)
        stored = self._plane(stored, file)
        if stored.dtype == bool:
            stored = stored.astype(np.uint8) * 255
        unknown = np.isin(stored, self.unlabelled) if self.unlabelled else None
        if self.kind in ("edge", "mask") and not self.numbers:
            known = stored if unknown is None else stored[~unknown]
            if stored.dtype != np.uint8 or known.max(initial=0) <= 1:  # 0 and 1, not 0 to 255
                stored = (stored > 0).astype(np.float32)
            return stored if unknown is None else np.where(unknown, np.nan, decode_edge(stored))
        if self.scale is None and stored.dtype.kind != "f":
            raise UserError(
                f"{file} holds integers ({stored.dtype}), and nothing says what they mean",
                f"give what one of them is: mixture.maps.{self.task}.scale=0.001 for millimetres as metres",
            )
        values = stored.astype(np.float32) * np.float32(self.scale if self.scale is not None else 1.0)
        if unknown is not None:
            values[unknown] = np.nan
        return values

    @property
    def _translated(self) -> bool:
        return self.values is not None or self.colours is not None

    def _classes(self, stored: np.ndarray, file: Path) -> np.ndarray:
        if file.suffix.lower() in LOSSY:
            raise UserError(f"{file} is compressed with losses, which changes class numbers", "save masks as PNG")
        if self.colours is not None:
            return self._by_colour(stored, file)
        stored = self._plane(stored, file).astype(np.int32 if stored.dtype.kind != "b" else np.uint8)
        if self.values is None:
            return stored.astype(np.uint8) if stored.size and stored.min() >= 0 and stored.max() < 256 else stored
        classes = np.full(stored.shape, -1, np.int16)
        for number, value in enumerate(self.values):
            classes[stored == value] = number
        classes[np.isin(stored, self.unlabelled) & (classes < 0)] = UNLABELLED
        self._refuse(classes < 0, stored, file, "values")
        return classes.astype(np.uint8)

    def _by_colour(self, stored: np.ndarray, file: Path) -> np.ndarray:
        if stored.ndim == 2:
            stored = np.repeat(stored[..., None], 3, axis=2)
        words = stored[..., 0].astype(np.int32) << 16 | stored[..., 1].astype(np.int32) << 8 | stored[..., 2]
        classes = np.full(words.shape, -1, np.int16)
        for number, (red, green, blue) in enumerate(self.colours or ()):
            classes[words == (red << 16 | green << 8 | blue)] = number
        grey = (stored[..., 0] == stored[..., 1]) & (stored[..., 1] == stored[..., 2])
        classes[grey & np.isin(stored[..., 0], self.unlabelled) & (classes < 0)] = UNLABELLED
        self._refuse(classes < 0, stored, file, "colours")
        return classes.astype(np.uint8)

    def _refuse(self, wrong: np.ndarray, stored: np.ndarray, file: Path, key: str) -> None:
        if wrong.any():
            value = stored[wrong][0].tolist()
            raise UserError(
                f"{file}: {int(wrong.sum())} pixels are {value}, which is not among mixture.maps.{self.task}.{key}",
                f"add it, or say that it means no label: mixture.maps.{self.task}.unlabelled",
            )

    def _plane(self, stored: np.ndarray, file: Path) -> np.ndarray:
        """(H, W) of a map that has one channel, or the same in all three."""
        if stored.ndim == 2:
            return stored
        first = stored[..., 0]
        if any((stored[..., i] != first).any() for i in range(1, min(stored.shape[2], 3))):
            found = np.unique(stored[..., :3].reshape(-1, stored.shape[2])[:, :3], axis=0)[:6].tolist()
            hint = f"name the colour of each class: mixture.maps.{self.task}.colours={found}".replace(" ", "")
            if self.kind != "classes":
                hint = "save it with one channel"
            raise UserError(f"{file} is a picture in colours", hint)
        return first


def decode_number(stored: np.ndarray) -> np.ndarray:
    """As it is stored; NaN where it is not finite."""
    return np.where(np.isfinite(stored), stored, np.nan).astype(np.float32)


def parse_maps(
    given: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Map], list[Problem]]:
    """The maps of the tasks, and everything that is wrong with them; those of other tasks are left alone."""
    maps, problems = {}, []
    for task, config in tasks.items():
        where, keys = f"mixture.maps.{task}", given.get(task)
        keys = {"files": keys} if isinstance(keys, str) else keys
        if not isinstance(keys, Mapping):
            what = f"nothing says where the maps of task '{task}' are ({where})"
            problems.append(Problem(what, f"set {where}=FOLDER; {suggest(task, given)}"))
            continue
        wrong = check_mapping(MapKeys, where, keys)
        if not wrong:
            parsed = MapKeys(**keys)
            wrong = _wrong(task, where, parsed, config)
        if not wrong:
            maps[task] = _made(task, parsed, config)
        problems += wrong
    return maps, problems


def _made(task: str, keys: MapKeys, config: Mapping[str, Any]) -> Map:
    colours = None if keys.colours is None else tuple((int(r), int(g), int(b)) for r, g, b in keys.colours)
    kind, name = _kind(config)
    return Map(
        task,
        keys.files,
        keys.kind or kind,  # type: ignore[arg-type]
        int(config.get("num_classes") or 0),
        None if keys.values is None else tuple(keys.values),
        colours,
        _unlabelled(keys, keys.kind or kind),
        keys.scale,
        numbers=name == "PixelRegression",
    )


def _unlabelled(keys: MapKeys, kind: str | None) -> tuple[float, ...]:
    if keys.unlabelled is None:
        return (UNLABELLED,) if kind == "classes" else ()
    return tuple(keys.unlabelled)


def _wrong(task: str, where: str, keys: MapKeys, config: Mapping[str, Any]) -> list[Problem]:
    kind, _ = _kind(config)
    problems = []
    if keys.kind is not None and keys.kind not in get_args(MapKind):
        problems.append(Problem(f"unknown value '{where}.kind={keys.kind}'", suggest(keys.kind, get_args(MapKind))))
    elif kind is None and keys.kind is None:
        what = f"task '{task}' is none of those whose maps are known here"
        problems.append(Problem(what, f"set {where}.kind; valid: {', '.join(get_args(MapKind))}"))
    elif keys.kind is not None and kind is not None and {keys.kind, kind} not in ({kind}, {"depth", "inverse_depth"}):
        problems.append(Problem(f"'{where}.kind' is {keys.kind}, but task '{task}' reads {kind}", "runner ls task"))
    classes = config.get("num_classes")
    for key in ("values", "colours"):
        listed = getattr(keys, key)
        if listed is None:
            continue
        if (keys.kind or kind) != "classes":
            problems.append(Problem(f"'{where}.{key}' needs a task with classes, '{task}' is not one"))
        elif len(listed) != classes:
            what = f"'{where}.{key}' names {len(listed)} classes, 'mixture.tasks.{task}.num_classes' is {classes}"
            problems.append(Problem(what, f"set mixture.tasks.{task}.num_classes={len(listed)}"))
        elif len(listed) > UNLABELLED:
            problems.append(Problem(f"'{where}.{key}' names {len(listed)} classes, {UNLABELLED} at most fit"))
        elif key == "colours" and not all(_is_colour(colour) for colour in listed):
            problems.append(Problem(f"'{where}.colours' must be a list of [red, green, blue], from 0 to 255"))
    if keys.values is not None and keys.colours is not None:
        problems.append(Problem(f"'{where}' has values and colours", "take one of them out"))
    return problems


def _is_colour(colour: Any) -> bool:
    if not isinstance(colour, Sequence) or isinstance(colour, str) or len(colour) != 3:
        return False
    return all(isinstance(part, int) and 0 <= part <= 255 for part in colour)


def _kind(config: Mapping[str, Any]) -> tuple[MapKind | None, str]:
    """What a task reads, and the name of the class that decides it."""
    target = str(config.get("_target_", ""))
    for _, node in bases(*define(target)) if target else ():  # type: ignore[arg-type]
        if node.name in BY_TASK:
            return BY_TASK[node.name], node.name
    return None, ""
