"""Cityscapes with two dense tasks at 128 x 256, in the layout that MTAN published and LibMTL and others use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runner.mixtures import archive
from runner.mixtures.base import Annotation
from runner.mixtures.dense import Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Published
from runner.mixtures.views import ClassDecoder, Layer, decode_depth

PLACE = "https://www.dropbox.com/sh/gaw6vh6qusoyms6/AADwWi0Tp3E3M4B2xzeGlsEna"

OFFERED = {
    "segmentation": Annotation("dense", "classification", 7),
    "depth": Annotation("dense", "regression"),
}


class Cityscapes2(DenseArchive):
    """One data set; tasks `segmentation` (7 classes, or 19 or 2) and `depth`, or one of them.

    Layout: {train,val}/{image,label_7,depth}/N.npy: image (H, W, 3) in [0, 1], label_7, label_19 or label_2 (H, W) with
    -1 unlabelled (or a folder `label`, whatever it holds), depth (H, W, 1), which is *inverse* depth on a scale of its
    own, 0 unknown. `num_classes` of the task says which labels are read. The test split is the published val;
    validation is carved from train.

    Args: see `DenseArchive`.
    """

    option = "cityscapes2"
    what = "the Cityscapes archive of MTAN"
    marker = "train/image"
    unlabelled = -1
    offered = OFFERED
    published = Published(
        home=f"{PLACE} (cityscapes2, the archive of MTAN)",
        by_hand=(
            "agree to the licence of Cityscapes: https://www.cityscapes-dataset.com/license",
            f"open {PLACE} in a browser and download the folder of 2, 7 and 19 classes at 128 x 256",
            "unpack it so that train/image/0.npy and val/image/0.npy are in {folder}",
        ),
        counts={"train": 2975, "val": 500},
        ranges={"depth": (0.0, 1.0)},
    )

    def folders(self, task: str) -> Sequence[str]:
        inside = {"": "image", "depth": "depth"}.get(task)
        if inside is None:
            return [f"{s}/label_{self.classes('segmentation')}|{s}/label" for s in self.listed.values()]
        return [f"{s}/{inside}" for s in self.listed.values()]

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"), unlabelled=(-1, 255))),
            "depth": Layer("inverse_depth", decode_depth),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        names = archive.numbered(root / listed / "image")
        labels = f"label_{self.classes('segmentation')}"
        files = {
            "segmentation": (f"{listed}/{labels}/{{}}.npy", f"{listed}/label/{{}}.npy"),
            "depth": (f"{listed}/depth/{{}}.npy",),
        }
        patterns = {name: files[name] for name in wanted}
        see = "runner data verify cityscapes2"
        found = archive.match_files(root, names, patterns, wanted if self.partial else (), see)
        images = [f"{listed}/image/{name}.npy" for name in names]
        ids = [f"{listed}/{name}" for name in names]
        layers = self.layers(wanted)
        return Files(root, ids, images, found, layers, read_map=_read_map, read_image=archive.read_float_image)


def _read_map(name: str, path: Path) -> np.ndarray:
    """A stored map (H, W)."""
    return archive.plane(archive.read_array(path), path)
