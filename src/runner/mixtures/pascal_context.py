"""PASCAL-Context with five dense tasks, in the layout that ASTMT, ATRC and InvPT published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import UserError
from runner.mixtures import archive
from runner.mixtures.base import Annotation
from runner.mixtures.dense import Record, Source
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.published import Download, Published
from runner.mixtures.views import ClassDecoder, Layer, decode_edge, decode_normals
from runner.tasks.boundaries.thinning import thin_map

FILES = {
    "segmentation": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "human_parts": ("human_parts/{}.mat",),
    "saliency": ("sal_distill/{}.png",),
    "normals": ("normals_distill/{}.png",),
    "edge": ("pascal-context/trainval/{}.mat",),
}
"""Annotation → its files, the preferred one first."""

FOLDERS = {
    "segmentation": ("semseg/VOC12", "semseg/pascal-context"),
    "human_parts": ("human_parts",),
    "saliency": ("sal_distill",),
    "normals": ("normals_distill", "pascal-context/trainval"),
    "edge": ("pascal-context/trainval",),
}

PERSON = 15
"""PASCAL VOC's number of the class "person"."""

PARTS = {
    1: "hair head lear lebrow leye mouth nose rear rebrow reye",
    2: "neck torso",
    3: "luarm ruarm",
    4: "lhand llarm rhand rlarm",
    5: "luleg ruleg",
    6: "lfoot llleg rfoot rlleg",
}
"""Class → the parts of PASCAL-Part that make it up: head, torso, upper arm, lower arm, upper leg, lower leg."""

PART_CLASS = {part: number for number, parts in PARTS.items() for part in parts.split()}

# The normals were predicted by a network that knew NYUD's classes: they count where PASCAL-Context has a class that
# NYUD has too (by name, and tvmonitor), as in all released evaluations. Numbers of PASCAL-Context's 459 labels.
WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
_HAS_NORMALS = np.isin(np.arange(460), WITH_NORMALS)
_NO_NORMAL = 127
"""Stored in all three channels: a vector of length 0.01, which is no direction."""

OFFERED = {
    "segmentation": Annotation("dense", "classification", 21),
    "human_parts": Annotation("dense", "classification", 7),
    "saliency": Annotation("dense", "classification"),
    "normals": Annotation("dense", "regression"),
    "edge": Annotation("dense", "classification"),
}


class PascalContext(DenseArchive):
    """One data set; tasks `segmentation` (21), `human_parts` (7), `saliency`, `normals`, `edge`, or some of them.

    Layout: JPEGImages/ID.jpg, ImageSets/Context/{train,val}.txt, semseg/{VOC12,pascal-context}/ID.png (0 to 20, 255
    unlabelled; VOC12 where an image has both), human_parts/ID.mat (PASCAL-Part's objects and their parts),
    sal_distill/ID.png, normals_distill/ID.png (n = 2 v / 255 - 1), pascal-context/trainval/ID.mat (LabelMap of 459
    classes). As published, edges are the thinned borders between labels, normals count in classes that NYUD has too,
    and an image without a person has no labels for human parts. The test split is the published val.

    Args: see `DenseArchive`.
    """

    option = "pascal_context"
    what = "the PASCALContext archive"
    marker = "ImageSets/Context"
    offered = OFFERED
    published = Published(
        home="https://github.com/brdav/atrc",
        downloads=(
            Download(
                "https://data.vision.ee.ethz.ch/brdavid/atrc/PASCALContext.tar.gz",
                "PASCALContext.tar.gz",
                unpack="ImageSets/Context/train.txt",
            ),
        ),
        counts={"train": 4998, "val": 5105},
    )

    def folders(self, task: str) -> Sequence[str]:
        return FOLDERS[task] if task else ("JPEGImages",)

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"))),
            "human_parts": Layer("classes", ClassDecoder(self.classes("human_parts"))),
            "saliency": Layer("mask", decode_edge),
            "normals": Layer("normals", decode_normals),
            "edge": Layer("edge", decode_edge),
        }
        return {name: layers[name] for name in wanted}

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        ids = archive.read_list(root / "ImageSets/Context" / f"{listed}.txt")
        patterns = {"": ("JPEGImages/{}.jpg",)} | {name: FILES[name] for name in wanted}
        if "normals" in wanted:
            patterns["labels"] = FILES["edge"]
        partial = [*wanted, "labels"] if self.partial else ()
        found = archive.match_files(root, ids, patterns, partial, "runner data verify pascal_context")
        images, labels = archive.names_of(found.pop("")), found.pop("labels", [])
        return _Files(root, ids, images, found, self.layers(wanted), labels)


class _Files(Files):
    """Records of which some maps are not there although their file is, and some need two files."""

    def __init__(self, root: Path, ids: Any, images: Any, maps: Any, layers: Any, labels: Sequence[str | None]) -> None:
        super().__init__(root, ids, images, maps, layers, read_map=_read_map)
        self._labels = labels

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        record = super().read(index, [name for name in wanted if name != "human_parts"])
        if "human_parts" in wanted and (file := self._maps["human_parts"][index]) is not None:
            parts = read_parts(self.root / file)
            if parts is not None:
                record.maps["human_parts"] = parts
        if "normals" in record.maps:
            file = self._labels[index]
            if file is None:
                del record.maps["normals"]  # nothing says where they count
            else:
                _mask_normals(record.maps["normals"], read_labels(self.root / file), self.root / file)
        return record


def _read_map(name: str, path: Path) -> np.ndarray:
    """A stored map: (H, W), or (3, H, W) for normals."""
    if name == "edge":
        return borders(read_labels(path))
    if name == "normals":
        return archive.read_planes(path)
    if name == "saliency":
        return archive.plane(np.asarray(archive.read_image(path, "L")), path)
    return archive.read_plane(path)


def read_labels(path: Path) -> np.ndarray:
    """LabelMap (H, W) of the 459 classes of PASCAL-Context.

    Raises:
        UserError: the file holds no such thing.
    """
    labels = archive.read_mat(path).get("LabelMap")
    if labels is None or labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 459:
        raise UserError(f"{path} has no LabelMap of PASCAL-Context's 459 classes", "unpack the whole archive again")
    return labels


def borders(labels_HW: np.ndarray) -> np.ndarray:
    """Edges of a label map as 0 or 255: the thinned set of pixels where the Laplacian of the labels is not zero."""
    grown = np.pad(labels_HW.astype(np.int64), 1, mode="reflect")
    around = grown[:-2, 1:-1] + grown[2:, 1:-1] + grown[1:-1, :-2] + grown[1:-1, 2:]
    return thin_map(around != 4 * grown[1:-1, 1:-1]).astype(np.uint8) * np.uint8(255)


def _mask_normals(normals_3HW: np.ndarray, labels_HW: np.ndarray, path: Path) -> None:
    """Take away the normals of classes that have none, in place."""
    if normals_3HW.shape[1:] != labels_HW.shape:
        raise UserError(f"{path} has shape {labels_HW.shape}, but the normals {normals_3HW.shape[1:]}")
    normals_3HW[:, ~_HAS_NORMALS[labels_HW]] = _NO_NORMAL


def read_parts(path: Path) -> np.ndarray | None:
    """The body parts (H, W) of all people of an image, 0 for what is none; None where nobody has any.

    Raises:
        UserError: the file is no annotation of PASCAL-Part.
    """
    found = None
    try:
        for thing in archive.read_mat(path)["anno"][0, 0]["objects"].ravel():
            if int(thing["class_ind"].squeeze()) != PERSON or not thing["parts"].size:
                continue
            if found is None:
                found = np.zeros(thing["mask"].shape, np.uint8)
            for part in thing["parts"].ravel():
                found[part["mask"].astype(bool)] = PART_CLASS[str(part["part_name"].squeeze())]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        what = f"{path} is no annotation of PASCAL-Part: {type(error).__name__} {error}"
        raise UserError(what, "unpack the whole archive again") from error
    return found
