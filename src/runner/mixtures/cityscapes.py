"""Cityscapes as its authors publish it: leftImg8bit, gtFine and disparity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import Problem, UserError
from runner.mixtures import archive
from runner.mixtures.base import Annotation
from runner.mixtures.dense import Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Published
from runner.mixtures.views import MISSING_INT, Layer

IMAGE = "_leftImg8bit.png"
FILES = {
    "segmentation": "gtFine/{split}/{{}}_gtFine_labelIds.png",
    "depth": "disparity/{split}/{{}}_disparity.png",
}

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label ids of the 19 classes that are evaluated, in the order of their training ids."""

CATEGORY = (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6)
"""Training id → one of 7: flat, construction, object, nature, sky, human, vehicle."""

BASELINE, FOCAL_LENGTH = 0.209313, 2262.52
"""Metres between the cameras, and pixels at 2048 x 1024: depth = BASELINE · FOCAL_LENGTH / disparity."""

PAGE = "https://www.cityscapes-dataset.com/downloads"

OFFERED = {
    "segmentation": Annotation("dense", "classification", 19),
    "depth": Annotation("dense", "regression"),
}


class Cityscapes(DenseArchive):
    """One data set; tasks `segmentation` (19 classes, or their 7 categories) and `depth`.

    Layout: leftImg8bit/{train,val}/CITY/ID_leftImg8bit.png, gtFine/…/ID_gtFine_labelIds.png (label ids, 0 to 33),
    disparity/…/ID_disparity.png (16 bits: 256 · disparity + 1, 0 unknown). The test split is the published val;
    validation is carved from train.

    Args:
        depth: what `depth` is: "inverse", 1/m, as multi-task papers have it; or "metres".
        path, size, fit, augment, validation, split_seed, partial: see `DenseArchive`.
    """

    option = "cityscapes"
    what = "Cityscapes"
    marker = "leftImg8bit/train"
    offered = OFFERED
    published = Published(
        home=PAGE,
        by_hand=(
            f"register at {PAGE} (with an address of a university or company), and log in",
            "download leftImg8bit_trainvaltest.zip (11 GB), gtFine_trainvaltest.zip (241 MB) and"
            " disparity_trainvaltest.zip (3.5 GB)",
            "unpack all three so that leftImg8bit, gtFine and disparity are in {folder}",
        ),
        counts={"train": 2975, "val": 500},
        ranges={"depth": (0.0, 500.0)},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        depth: Literal["inverse", "metres"] = "inverse",
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        validation: PositiveInt | Fraction = 0.1,
        split_seed: int = 0,
        partial: bool = False,
    ) -> None:
        super().__init__(
            data_root,
            tasks=tasks,
            path=path,
            size=size,
            fit=fit,
            augment=augment,
            validation=validation,
            split_seed=split_seed,
            partial=partial,
        )
        self.depth = depth

    def check(self) -> list[Problem]:
        problems = super().check()
        if "segmentation" in self.tasks and self.classes("segmentation") not in (7, 19):
            what = f"'mixture.tasks.segmentation.num_classes' is {self.classes('segmentation')}, of Cityscapes"
            problems.append(Problem(what, "19: the evaluated classes; 7: their categories"))
        return problems

    def folders(self, task: str) -> Sequence[str]:
        kind = FILES[task].partition("/")[0] if task else "leftImg8bit"
        return [f"{kind}/{listed}" for listed in self.listed.values()]

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        kind = "inverse_depth" if self.depth == "inverse" else "depth"
        layers = {
            "segmentation": Layer("classes", CityscapesLabels(self.classes("segmentation"))),
            "depth": Layer(kind, decode_inverse if self.depth == "inverse" else decode_metres),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        folder = root / "leftImg8bit" / listed
        ids = sorted(f"{p.parent.name}/{p.name.removesuffix(IMAGE)}" for p in folder.glob(f"*/*{IMAGE}"))
        if not ids:
            raise UserError(f"there is no CITY/*{IMAGE} in {folder}", "unpack the whole archive again")
        patterns = {name: (FILES[name].format(split=listed),) for name in wanted}
        see = "runner data verify cityscapes"
        found = archive.match_files(root, ids, patterns, wanted if self.partial else (), see)
        images = [f"leftImg8bit/{listed}/{name}{IMAGE}" for name in ids]
        return Files(root, ids, images, found, self.layers(wanted), read_map=_read_map)


def _read_map(name: str, path: Path) -> np.ndarray:
    """Training ids with 255 for what is not evaluated, or the stored disparity (16 bits)."""
    stored = archive.read_plane(path)
    if name == "segmentation":
        if stored.dtype != np.uint8:
            raise UserError(f"{path} is no map of label ids: it has type {stored.dtype}", "unpack the archive again")
        return _TRAINING_ID[stored]
    return stored.astype(np.uint16, copy=False)


_TRAINING_ID = np.full(256, 255, np.uint8)
_TRAINING_ID[list(EVALUATED)] = np.arange(len(EVALUATED))


class CityscapesLabels:
    """Training ids → 19 classes or 7 categories, -100 for 255.

    Args:
        num_classes: 19 or 7.
    """

    def __init__(self, num_classes: int) -> None:
        classes = CATEGORY if num_classes == 7 else range(len(EVALUATED))
        self._table = np.full(256, MISSING_INT, np.int64)
        self._table[: len(EVALUATED)] = classes

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        return np.take(self._table, stored)


def _disparity(stored: np.ndarray) -> np.ndarray:
    """Pixels at full size, NaN where it is unknown, or 0: nothing is infinitely far away."""
    pixels = (stored.astype(np.float32) - 1) / 256
    pixels[stored <= 1] = np.nan
    return pixels


def decode_inverse(stored: np.ndarray) -> np.ndarray:
    """Inverse depth in 1/m."""
    return _disparity(stored) / np.float32(BASELINE * FOCAL_LENGTH)


def decode_metres(stored: np.ndarray) -> np.ndarray:
    """Depth in metres."""
    return np.float32(BASELINE * FOCAL_LENGTH) / _disparity(stored)
