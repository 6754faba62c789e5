"""NYUv2 with three dense tasks, in the layout that MTAN and LibMTL published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runner.mixtures import archive
from runner.mixtures.base import Annotation
from runner.mixtures.dense import Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Published
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_normals

FOLDERS = {"segmentation": "label", "depth": "depth", "normals": "normal"}
"""Annotation → its folder."""

PLACE = "https://www.dropbox.com/sh/86nssgwm6hm3vkb/AACrnUQ4GxpdrBbLjb6n-mWNa"

OFFERED = {
    "segmentation": Annotation("dense", "classification", 13),
    "depth": Annotation("dense", "regression"),
    "normals": Annotation("dense", "regression"),
}


class NYUv2(DenseArchive):
    """One data set; tasks `segmentation` (13 classes), `depth`, `normals`, or some of them.

    Layout: {train,val}/{image,label,depth,normal}/N.npy: image (H, W, 3) in [0, 1], label (H, W) with -1 unlabelled,
    depth (H, W, 1) in metres with 0 unknown, normal (H, W, 3) with zeros unknown. Images are kept with 8 bits, which is
    what they were made from. The test split is the published val; validation is carved from train.

    Args: see `DenseArchive`.
    """

    option = "nyuv2"
    what = "the NYUv2 archive of MTAN"
    marker = "train/image"
    script = "nyuv2"
    unlabelled = -1
    offered = OFFERED
    published = Published(
        home=f"{PLACE} (nyuv2, the archive of MTAN and LibMTL)",
        by_hand=(
            f"open {PLACE} in a browser and download the folder nyuv2 (8.2 GB as one .zip)",
            "unpack it so that train/image/0.npy and val/image/0.npy are in {folder}",
            "or take the same images from the hub, without a browser: runner data prepare nyuv2_hub --root DIR",
        ),
        counts={"train": 795, "val": 654},
        ranges={"depth": (0.1, 10.5)},
    )

    def folders(self, task: str) -> Sequence[str]:
        return [f"{listed}/{FOLDERS.get(task, 'image')}" for listed in self.listed.values()]

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"), unlabelled=(-1, 255))),
            "depth": Layer("depth", decode_depth),
            "normals": Layer("normals", decode_normals),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        names = archive.numbered(root / listed / "image")
        patterns = {name: (f"{listed}/{FOLDERS[name]}/{{}}.npy",) for name in wanted}
        found = archive.match_files(root, names, patterns, wanted if self.partial else (), "runner data verify nyuv2")
        images = [f"{listed}/image/{name}.npy" for name in names]
        ids = [f"{listed}/{name}" for name in names]
        layers = self.layers(wanted)
        return Files(root, ids, images, found, layers, read_map=_read_map, read_image=archive.read_float_image)


def _read_map(name: str, path: Path) -> np.ndarray:
    """A stored map: (H, W), or (3, H, W) for normals."""
    stored = archive.read_array(path)
    return archive.vectors(stored, path).transpose(2, 0, 1) if name == "normals" else archive.plane(stored, path)
