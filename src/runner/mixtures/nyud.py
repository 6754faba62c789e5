"""NYUD_MT: NYU depth v2 with four dense tasks, in the layout that ATRC and InvPT published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runner.mixtures import archive
from runner.mixtures.base import Annotation
from runner.mixtures.dense import Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Download, Published
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_edge, decode_normals

FILES = {
    "segmentation": ("segmentation/{}.png",),
    "depth": ("depth/{}.npy",),
    "normals": ("normals/{}.png", "normals/{}.jpg"),
    "edge": ("edge/{}.png",),
}
"""Annotation → its files; archives come with normals and images of either type."""

OFFERED = {
    "segmentation": Annotation("dense", "classification", 40),
    "depth": Annotation("dense", "regression"),
    "normals": Annotation("dense", "regression"),
    "edge": Annotation("dense", "classification"),
}


class NYUD(DenseArchive):
    """One data set; tasks `segmentation` (40 classes), `depth`, `normals`, `edge`, or some of them.

    Layout: images/ID.{png,jpg}, segmentation/ID.png (0 unlabelled, else class + 1), depth/ID.npy (metres, 0 unknown),
    normals/ID.{png,jpg} (n = 2 v / 255 - 1), edge/ID.png (0 or 255), gt_sets/{train,val}.txt (one id a line). The test
    split is the published val; validation is carved from train. A data set of one's own in this layout works as well.

    Args: see `DenseArchive`.
    """

    option = "nyud"
    what = "the NYUD_MT archive"
    marker = "gt_sets/train.txt"
    script = "nyud_mt"
    unlabelled = 0
    offered = OFFERED
    published = Published(
        home="https://github.com/brdav/atrc",
        downloads=(
            Download(
                "https://data.vision.ee.ethz.ch/brdavid/atrc/NYUDv2.tar.gz", "NYUDv2.tar.gz", unpack="gt_sets/train.txt"
            ),
        ),
        counts={"train": 795, "val": 654},
        ranges={"depth": (0.1, 10.5)},
    )

    def folders(self, task: str) -> Sequence[str]:
        return [FILES[task][0].partition("/")[0]] if task else ["images"]

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"), first=1, unlabelled=(0, 255))),
            "depth": Layer("depth", decode_depth),
            "normals": Layer("normals", decode_normals),
            "edge": Layer("edge", decode_edge),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        ids = archive.read_list(root / "gt_sets" / f"{listed}.txt")
        patterns = {"": ("images/{}.png", "images/{}.jpg")} | {name: FILES[name] for name in wanted}
        found = archive.match_files(root, ids, patterns, wanted if self.partial else (), "runner data verify nyud")
        images = archive.names_of(found.pop(""))
        return Files(root, ids, images, found, self.layers(wanted), read_map=_read_map)


def _read_map(name: str, path: Path) -> np.ndarray:
    """A stored map: (H, W), or (3, H, W) for normals."""
    if name == "normals":
        return archive.read_planes(path)
    if name == "edge":
        image = archive.read_image(path)
        return archive.plane(np.asarray(image if image.mode in "1L" else image.convert("L")), path)
    return archive.read_plane(path)
