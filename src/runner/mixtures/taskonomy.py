"""Taskonomy in the layout that its authors' downloads have: one folder per kind of map, one per building in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.config.kinds import PositiveInt
from runner.errors import Problem, UserError, suggest
from runner.mixtures import archive
from runner.mixtures.base import Annotation, Split
from runner.mixtures.dense import Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Published
from runner.mixtures.views import ClassDecoder, Layer, decode_normals

DOMAINS = {
    "": ("rgb", "rgb"),
    "segmentation": ("segment_semantic", "segmentsemantic"),
    "depth": ("depth_zbuffer", "depth_zbuffer"),
    "normals": ("normal", "normal"),
    "keypoints": ("keypoints2d", "keypoints2d"),
    "edge": ("edge_texture", "edge_texture"),
}
"""Annotation → its folder, and what its files are called by; "" are the images."""

UNKNOWN_DEPTH = 65535
METRE = 512
"""Stored depth per metre."""

OFFERED = {
    "segmentation": Annotation("dense", "classification", 17),
    "depth": Annotation("dense", "regression"),
    "normals": Annotation("dense", "regression"),
    "keypoints": Annotation("dense", "regression"),
    "edge": Annotation("dense", "regression"),
}


class Taskonomy(DenseArchive):
    """One data set; tasks `segmentation` (17 classes), `depth`, `normals`, `keypoints`, `edge`, or some of them.

    Layout: DOMAIN/BUILDING/point_P_view_V_domain_DOMAIN.png, or DOMAIN/taskonomy/BUILDING/… as omnidata-tools writes
    it, for the domains rgb, segment_semantic (0 unlabelled, else class + 1), depth_zbuffer (512 per metre, 65535
    unknown: sky and holes), normal (n = 2 v / 255 - 1), keypoints2d and edge_texture (16 bits, regressed). The splits
    are those of whole buildings.

    Args:
        buildings: split (train, val, test) → its buildings.
        path, size, fit, augment, partial: see `DenseArchive`.
    """

    option = "taskonomy"
    what = "Taskonomy"
    marker = "rgb"
    unlabelled = 0
    listed: Mapping[Split, str] = {"train": "train", "validation": "val", "test": "test"}  # type: ignore[misc]
    offered = OFFERED
    published = Published(
        home="https://github.com/StanfordVL/taskonomy/tree/master/data",
        by_hand=(
            "read and accept the data sharing agreement of Taskonomy: omnitools.download asks for it",
            "pip install omnidata-tools, then: omnitools.download rgb segment_semantic depth_zbuffer normal keypoints2d"
            " edge_texture --components taskonomy --subset tiny --dest {folder} --agree_all",
            "omnitools may place the domains one folder deeper: rgb must be in {folder}",
        ),
        ranges={"depth": (0.0, 128.0), "keypoints": (0.0, 1.0), "edge": (0.0, 1.0)},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        buildings: dict[str, list[str]],
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        partial: bool = False,
    ) -> None:
        super().__init__(data_root, tasks=tasks, path=path, size=size, fit=fit, augment=augment, partial=partial)
        self.buildings = {split: list(names) for split, names in buildings.items()}

    def check(self) -> list[Problem]:
        valid = list(self.listed.values())
        problems = [
            Problem(f"unknown key 'mixture.buildings.{split}'", suggest(split, valid))
            for split in self.buildings
            if split not in valid
        ]
        problems += [Problem(f"'mixture.buildings.{s}' names no building") for s in valid if not self.buildings.get(s)]
        twice = [
            b
            for s in valid
            for b in self.buildings.get(s, [])
            for t in valid
            if t < s and b in self.buildings.get(t, [])
        ]
        if twice:
            problems.append(Problem(f"'mixture.buildings' has {', '.join(twice)} in two splits"))
        return problems or super().check()

    def folders(self, task: str) -> Sequence[str]:
        inside = DOMAINS[task][0]
        names = [name for split in self.listed.values() for name in self.buildings[split]]
        return [f"{inside}/{name}|{inside}/taskonomy/{name}" for name in names]

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"), first=1, unlabelled=(0, 255))),
            "depth": Layer("depth", decode_zbuffer),
            "normals": Layer("normals", decode_normals),
            "keypoints": Layer("mask", decode_share),
            "edge": Layer("mask", decode_share),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        ids = []
        for building in self.buildings[listed]:
            places = [root / "rgb" / building, root / "rgb/taskonomy" / building]
            folder = next((place for place in places if place.is_dir()), places[0])
            names = sorted(p.name.removesuffix("_domain_rgb.png") for p in folder.glob("*_domain_rgb.png"))
            if not names:
                raise UserError(f"there is no *_domain_rgb.png in {folder}", "download the building again")
            ids += [f"{building}/{name}" for name in names]
        patterns = {
            name: tuple(f"{inside}/{part}{{}}_domain_{suffix}.png" for part in ("", "taskonomy/"))
            for name, (inside, suffix) in DOMAINS.items()
            if name in ("", *wanted)
        }
        see = "runner data verify taskonomy"
        found = archive.match_files(root, ids, patterns, wanted if self.partial else (), see)
        images = archive.names_of(found.pop(""))
        return Files(root, ids, images, found, self.layers(wanted), read_map=_read_map)


def _read_map(name: str, path: Path) -> np.ndarray:
    """A stored map: (H, W), or (3, H, W) for normals."""
    if name == "normals":
        return archive.read_planes(path)
    stored = archive.read_plane(path)
    return stored if name == "segmentation" else stored.astype(np.uint16, copy=False)


def decode_zbuffer(stored: np.ndarray) -> np.ndarray:
    """Metres; NaN where the scan has a hole."""
    depth = stored.astype(np.float32) / METRE
    depth[(stored == UNKNOWN_DEPTH) | (stored == 0)] = np.nan
    return depth


def decode_share(stored: np.ndarray) -> np.ndarray:
    """Of the largest value that 16 bits hold."""
    return stored.astype(np.float32) / np.float32(65535)
