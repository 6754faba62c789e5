"""Miniatures of further published archives, in exactly their layouts, of any pictures: rendered, or real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from runner.mixtures.celeba import ATTRIBUTES
from runner.mixtures.cityscapes import BASELINE, EVALUATED, FOCAL_LENGTH
from tests.mixtures.miniature import expand, with_holes

CONTEXT = (440, 158, 72, 397, 368, 18, 454, 115, 2, 360, 44, 25, 360)
"""A PASCAL-Context label for each class of the rooms; the last five have no normals."""

CITIES = {"train": ("aachen", "ulm"), "val": ("lindau", "munster")}
BUILDINGS = {"train": ["hanson", "merom"], "val": ["darden"], "test": ["ihlen"]}


@dataclass
class Picture:
    """An image (H, W, 3) uint8 with classes (H, W) below 13, depth in metres with 0 unknown, unit normals, edges."""

    image: np.ndarray
    classes: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    edge: np.ndarray


def rooms(count: int, first: int = 0) -> list[Picture]:
    """Rendered, with a hole in every label."""
    drawn = [with_holes(first + i) for i in range(count)]
    return [Picture(p.image, p.classes, p.depth, p.normals, p.edge) for p in drawn]


def real(data: Path, place: Path) -> list[Picture]:
    """Real images with their labels, from the script of the data folder: four of train, four of val."""
    root = expand(data, place, "nyuv2")
    found = []
    for split in ("train", "val"):
        for i in range(4):
            load = {k: np.load(root / split / k / f"{i}.npy") for k in ("image", "label", "depth", "normal")}
            classes = np.where(load["label"] < 0, 0, load["label"]).astype(np.uint8)
            edge = np.zeros(classes.shape, bool)
            edge[:, 1:] = classes[:, 1:] != classes[:, :-1]
            image = np.rint(load["image"] * 255).astype(np.uint8)
            found.append(Picture(image, classes, load["depth"][..., 0].astype(np.float32), load["normal"], edge))
    return found


def hole(picture: Picture) -> np.ndarray:
    return picture.depth == 0


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def eight_bits(normals_HW3: np.ndarray) -> np.ndarray:
    return np.rint((normals_HW3 + 1) * 127.5).astype(np.uint8)


def write_pascal_context(root: Path, train: Sequence[Picture], val: Sequence[Picture]) -> Path:
    """The layout of ASTMT and ATRC; every second image shows a person, where the picture's most frequent class is."""
    for folder in ("semseg/VOC12", "semseg/pascal-context", "human_parts", "pascal-context/trainval"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    numbers: dict[str, list[str]] = {}
    for split, pictures in (("train", train), ("val", val)):
        for i, picture in enumerate(pictures):
            name = f"2008_{len(numbers.get('train', [])) if split == 'val' else 0:02d}{i:04d}"
            numbers.setdefault(split, []).append(name)
            png(root / "JPEGImages" / f"{name}.png", picture.image)
            Image.fromarray(picture.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            (root / "JPEGImages" / f"{name}.png").unlink()
            classes = picture.classes.copy()
            classes[hole(picture)] = 255
            png(root / "semseg" / ("VOC12" if i % 2 else "pascal-context") / f"{name}.png", classes)
            png(
                root / "sal_distill" / f"{name}.png",
                np.where(picture.classes == picture.classes[-1, 0], 180, 100).astype(np.uint8),
            )
            png(root / "normals_distill" / f"{name}.png", eight_bits(picture.normals))
            labels = np.array(CONTEXT, np.uint16)[picture.classes]
            savemat(root / "pascal-context/trainval" / f"{name}.mat", {"LabelMap": labels})
            savemat(root / "human_parts" / f"{name}.mat", {"anno": people(picture, i % 2 == 0)})
    for split, names in numbers.items():
        path = root / "ImageSets/Context" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def body(picture: Picture) -> np.ndarray:
    return picture.classes == np.bincount(picture.classes.ravel()).argmax()


def people(picture: Picture, person: bool) -> Any:
    """An annotation of PASCAL-Part: a sofa without parts, and maybe a person with a head and a lower arm."""
    mask = body(picture)
    head, arm = mask.copy(), mask.copy()
    head[len(head) // 2 :] = False
    arm[: len(arm) // 2] = False
    things = [("sofa", 18, mask, [])]
    if person:
        things.append(("person", 15, mask, [("lear", head), ("rlarm", arm)]))
    objects = np.zeros((1, len(things)), [(key, object) for key in ("class", "class_ind", "mask", "parts")])
    for k, (name, number, where, parts) in enumerate(things):
        inner: Any = np.zeros((0, 0))
        if parts:
            inner = np.zeros((1, len(parts)), [("part_name", object), ("mask", object)])
            for j, (part, area) in enumerate(parts):
                inner[0, j] = (part, area.astype(np.uint8))
        objects[0, k] = (name, number, where.astype(np.uint8), inner)
    return {"imname": "2008_000000", "objects": objects}


def write_cityscapes(root: Path, train: Sequence[Picture], val: Sequence[Picture]) -> Path:
    """leftImg8bit, gtFine and disparity, in two cities."""
    for split, pictures in (("train", train), ("val", val)):
        for i, picture in enumerate(pictures):
            city = CITIES[split][i % 2]
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            png(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", picture.image)
            labels = np.array(EVALUATED, np.uint8)[picture.classes]
            labels[hole(picture)] = 3  # out of the region of interest
            png(root / "gtFine" / f"{stem}_gtFine_labelIds.png", labels)
            png(root / "disparity" / f"{stem}_disparity.png", disparity(picture))
    return root


def disparity(picture: Picture) -> np.ndarray:
    """16 bits, 256 times the disparity and 1, of depths ten times as large as in the room."""
    with np.errstate(divide="ignore"):
        pixels = np.where(hole(picture), 0, BASELINE * FOCAL_LENGTH / (10 * picture.depth))
    return np.where(hole(picture), 0, np.rint(256 * pixels + 1)).astype(np.uint16)


def write_cityscapes2(root: Path, train: Sequence[Picture], val: Sequence[Picture]) -> Path:
    """The layout of MTAN, with its types: seven and nineteen classes, and inverse depth."""
    for split, pictures in (("train", train), ("val", val)):
        for i, picture in enumerate(pictures):
            gone = hole(picture)
            npy(root / split / "image" / f"{i}.npy", picture.image / 255.0)
            npy(root / split / "label_19" / f"{i}.npy", np.where(gone, -1.0, picture.classes))
            npy(root / split / "label_7" / f"{i}.npy", np.where(gone, -1.0, picture.classes % 7))
            with np.errstate(divide="ignore"):
                inverse = np.where(gone, 0, 0.1 / picture.depth)
            npy(root / split / "depth" / f"{i}.npy", inverse[..., None])
    return root


def write_folders(root: Path, train: Sequence[Picture], test: Sequence[Picture]) -> Path:
    """Images and masks in folders, as `mixture=folders` reads them."""
    for split, pictures in (("train", train), ("test", test)):
        for i, picture in enumerate(pictures):
            png(root / split / "images" / f"{i}.png", picture.image)
            png(root / split / "masks" / f"{i}.png", np.where(hole(picture), 255, picture.classes).astype(np.uint8))
    return root


def write_taskonomy(root: Path, pictures: Sequence[Picture], inside: str = "") -> Path:
    """One folder per domain, `inside` it maybe another one, then one per building; pictures are dealt to buildings."""
    buildings = [b for names in BUILDINGS.values() for b in names]
    for i, picture in enumerate(pictures):
        building = buildings[i % len(buildings)]
        stem = f"{inside}{building}/point_{i}_view_{i % 3}_domain_"
        gone = hole(picture)
        depth = np.where(gone, 65535, np.rint(512 * picture.depth)).astype(np.uint16)
        png(root / "rgb" / f"{stem}rgb.png", picture.image)
        png(
            root / "segment_semantic" / f"{stem}segmentsemantic.png",
            np.where(gone, 0, picture.classes + 1).astype(np.uint8),
        )
        png(root / "depth_zbuffer" / f"{stem}depth_zbuffer.png", depth)
        png(root / "normal" / f"{stem}normal.png", eight_bits(picture.normals))
        png(root / "keypoints2d" / f"{stem}keypoints2d.png", (picture.image[..., 0].astype(np.uint16) * 257))
        png(root / "edge_texture" / f"{stem}edge_texture.png", (picture.edge.astype(np.uint16) * 40000))
    return root


def write_nyuv2_hub(root: Path, train: Sequence[Picture], val: Sequence[Picture]) -> Path:
    """The hub's parquet files, by the library that writes them there."""
    import datasets

    datasets.disable_progress_bars()
    height, width = train[0].classes.shape
    features = datasets.Features(
        {
            "image": datasets.Array3D((3, height, width), "float32"),
            "segmentation": datasets.Array2D((height, width), "int64"),
            "depth": datasets.Array3D((1, height, width), "float32"),
            "normal": datasets.Array3D((3, height, width), "float32"),
            "noise": datasets.Array3D((1, height, width), "float32"),
        }
    )
    (root / "data").mkdir(parents=True, exist_ok=True)
    for split, pictures in (("train", train), ("val", val)):
        rows: dict[str, list[np.ndarray]] = {name: [] for name in features}
        for picture in pictures:
            rows["image"].append((picture.image / 255).astype(np.float32).transpose(2, 0, 1))
            rows["segmentation"].append(np.where(hole(picture), -1, picture.classes).astype(np.int64))
            rows["depth"].append(picture.depth[None])
            rows["normal"].append(picture.normals.astype(np.float32).transpose(2, 0, 1))
            rows["noise"].append(picture.depth[None] * 0)
        made = datasets.Dataset.from_dict(rows, features)
        made.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return root


def celeba_face(index: int) -> np.ndarray:
    """A face of 218 × 178: rows of slowly changing colours."""
    rng = np.random.default_rng(index)
    return np.asarray(Image.fromarray(rng.integers(0, 255, (4, 3, 3)).astype(np.uint8)).resize((178, 218)))


def celeba_labels(count: int) -> np.ndarray:
    return np.random.default_rng(40).integers(0, 2, (count, 40))


def write_celeba(root: Path, count: int, flat: bool = False) -> Path:
    """The authors' layout, or torchvision's: two thirds train, a sixth validation, a sixth test."""
    names = [name.title() for name in ATTRIBUTES]
    lists = (root, root) if flat else (root / "Anno", root / "Eval")
    images = (root if flat else root / "Img") / "img_align_celeba"
    for folder in (*lists, images):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{count}", " ".join(names) + " "]
    for i, labels in enumerate(celeba_labels(count)):
        Image.fromarray(celeba_face(i)).save(images / f"{i + 1:06d}.jpg", quality=95)
        rows.append(f"{i + 1:06d}.jpg " + " ".join(f"{2 * v - 1:2d}" for v in labels))
    (lists[0] / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    parts = [0] * (count - count // 3) + [1] * (count // 6) + [2] * (count // 3 - count // 6)
    (lists[1] / "list_eval_partition.txt").write_text("".join(f"{i + 1:06d}.jpg {p}\n" for i, p in enumerate(parts)))
    return root
