"""Images of one's own in folders of any layout, against the reader of a published one and against what was written."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures.dense_folders import DenseFolders
from tests.mixtures.archives import rooms, write_dense_folders
from tests.mixtures.miniature import SIZE, tasks, write_nyud_mt
from tests.mixtures.test_nyud import nyud

NYUD_MAPS = {
    "segmentation": {"files": "segmentation/{}.png", "kind": "classes", "first": 1, "unlabelled": [0]},
    "depth": {"files": "depth/{}.npy", "kind": "depth"},
    "normals": {"files": "normals/{}.jpg|normals/{}.png", "kind": "normals"},
    "edge": {"files": "edge/{}.png", "kind": "edge"},
}
OWN_MAPS = {
    "segmentation": {"files": "{split}/segmentation/{}.png", "kind": "classes"},
    "depth": {"files": "{split}/depth/{}.png", "kind": "depth", "scale": 0.001},
}
VALUES = {"_target_": "runner.tasks.pixel_regression.PixelRegression"}
MASK = {"_target_": "runner.tasks.saliency.Saliency"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyud_mt(tmp_path_factory.mktemp("data") / "NYUD_MT")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense_folders(tmp_path_factory.mktemp("data") / "rooms", rooms(6), rooms(3, 6))


def as_nyud(root: Path, names: tuple[str, ...] = (), **keys) -> DenseFolders:
    """The archive, read by what its layout says."""
    given = {"path": root.name, "size": list(SIZE), "fit": "pad", "validation": 2, "images": "images/{}.png"}
    given |= {"splits": {"train": "gt_sets/train.txt", "test": "gt_sets/val.txt"}, "maps": NYUD_MAPS}
    return DenseFolders(str(root.parent), tasks=tasks(*names), **(given | keys))


def folders(root: Path, names: tuple[str, ...] = ("segmentation", "depth"), **keys) -> DenseFolders:
    given = {"path": root.name, "size": list(SIZE), "images": "{split}/images/{}.png", "maps": OWN_MAPS}
    given |= {"splits": {"train": "train", "test": "test"}, "validation": 2, "tasks": tasks(*names)}
    return DenseFolders(str(root.parent), **(given | keys))


@pytest.mark.parametrize("by", ["loader", "accelerator"])
def test_a_published_layout_gives_what_its_own_reader_gives(archive, by) -> None:
    """Splits, evaluation, and training with its zooms, crops by classes, flips and colours, to the last bit."""
    augment = {"scale": [0.5, 2.0], "between": True, "crop": [40, 52], "max_share": 0.4, "device": by}
    ours, theirs = (make(archive, augment=augment) for make in (as_nyud, nyud))
    assert ours.check() == []
    assert ours.setup(None) == theirs.setup(None)
    for split in ("train", "validation", "test"):
        one, other = ours.datasets(split)["NYUD_MT"], theirs.datasets(split)["nyud"]
        assert len(one) == len(other) and one.tasks == other.tasks
        one = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own
        for i in range(len(one)):
            found, wanted = (d.example(i, np.random.default_rng(i) if split == "train" else None) for d in (one, other))
            assert found.id == wanted.id and set(found.targets) == set(wanted.targets)
            np.testing.assert_array_equal(found.inputs["pixels"], wanted.inputs["pixels"])
            for task, target in wanted.targets.items():
                np.testing.assert_array_equal(found.targets[task], target)
    assert one.hands_over_stored("cpu") == (by == "accelerator")


def test_folders_by_split(own) -> None:
    """Palettes, 16-bit millimetres, ids with folders."""
    mixture = folders(own)
    assert mixture.check() == []
    dataset = mixture.datasets("test")["rooms"]
    assert [dataset.example(i, None).id for i in range(3)] == ["test/seq/0", "test/seq/1", "test/seq/2"]
    for i, picture in enumerate(rooms(3, 6)):
        example, gone = dataset.example(i, None), picture.depth == 0
        labels = np.where(gone, -100, picture.classes.astype(np.int64))
        np.testing.assert_array_equal(example.targets["segmentation"], labels)
        depth = np.where(gone, np.nan, picture.depth)
        np.testing.assert_allclose(example.targets["depth"][0], depth, atol=5.1e-4)


def test_masks_values_and_normals_as_arrays(own, tmp_path) -> None:
    root = shutil.copytree(own, tmp_path / "more")
    rng = np.random.default_rng(0)
    stored = {}
    for split, count in (("train", 6), ("test", 3)):
        for i in range(count):
            made = {
                "salient": rng.integers(0, 3, SIZE).astype(np.uint8),  # 2 is unlabelled
                "height": rng.normal(size=SIZE),
                "near": rng.uniform(-0.2, 1, SIZE).astype(np.float32),
                "normals": rng.normal(size=(*SIZE, 3)),
            }
            stored[split, i] = made
            for name, values in made.items():
                place = root / split / name / "seq"
                place.mkdir(parents=True, exist_ok=True)
                np.save(place / f"{i}.npy", values) if name != "salient" else Image.fromarray(values).save(
                    place / f"{i}.png"
                )
    files = {name: f"{{split}}/{name}/{{}}.{'png' if name == 'salient' else 'npy'}" for name in stored["test", 0]}
    maps = {
        "salient": {"files": files["salient"], "kind": "mask", "unlabelled": [2]},
        "height": {"files": files["height"], "kind": "values", "scale": 2.0},
        "near": {"files": files["near"], "kind": "inverse_depth"},
        "normals": {"files": files["normals"], "kind": "normals"},
    }
    wanted = {"salient": MASK, "height": VALUES, "near": VALUES, "normals": tasks("normals")["normals"]}
    mixture = folders(root, tasks=wanted, maps=maps, augment={"scale": [2.0], "crop": list(SIZE), "flip": True})
    assert mixture.check() == []
    targets = mixture.datasets("test")["more"].example(1, None).targets
    raw = stored["test", 1]
    mask = np.where(raw["salient"] == 2, np.nan, raw["salient"] >= 1)
    np.testing.assert_array_equal(targets["salient"][0], mask.astype(np.float32))
    np.testing.assert_array_equal(targets["height"][0], 2 * raw["height"].astype(np.float32))
    np.testing.assert_array_equal(targets["near"][0], np.where(raw["near"] > 0, raw["near"], np.nan))
    lengths = np.linalg.norm(raw["normals"], axis=-1)
    known = (lengths > 0.5) & (lengths < 1.5)
    direction = (raw["normals"] / lengths[..., None]).transpose(2, 0, 1)
    np.testing.assert_allclose(targets["normals"], np.where(known, direction, np.nan), atol=1e-5)
    zoomed = mixture.datasets("train")["more"]
    example = zoomed.example(0, np.random.default_rng(0))
    _, view, _ = zoomed.look(0, np.random.default_rng(0))
    index = int(zoomed.source.ids[zoomed.indices[0]].rpartition("/")[2])
    rows = (2 * (np.arange(SIZE[0]) + view.offset[0]) + 1) // 4
    columns = (2 * (np.arange(SIZE[1]) + view.offset[1]) + 1) // 4
    window = stored["train", index]["near"][rows][:, columns]
    window = window[:, ::-1] if view.flip else window
    np.testing.assert_allclose(example.targets["near"][0], np.where(window > 0, 2 * window, np.nan), rtol=1e-6)


def test_without_splits_all_are_carved(archive) -> None:
    """Every image once; the test split does not depend on validation."""

    def ids(split, **keys):
        dataset = as_nyud(archive, ("depth",), splits=None, **({"test": 3} | keys)).datasets(split)["NYUD_MT"]
        return [dataset.example(i, None).id for i in range(len(dataset))]

    train, validation, test = (ids(split) for split in ("train", "validation", "test"))
    assert [len(s) for s in (train, validation, test)] == [4, 2, 3]
    assert sorted(train + validation + test) == [f"{i:04d}" for i in range(9)]
    assert ids("test", validation=1) == test != ids("test", split_seed=1)


def test_labels_that_are_missing(own, tmp_path) -> None:
    root = shutil.copytree(own, tmp_path / "holes")
    (root / "test/depth/seq/1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 examples have no file in .*test/depth/seq, such as 1\.png"):
        folders(root).datasets("test")
    targets = folders(root, partial=True).datasets("test")["holes"].example(1, None).targets
    assert set(targets) == {"segmentation"}
    assert set(folders(root, ("segmentation",)).datasets("test")["holes"].example(1, None).targets) == {"segmentation"}


def test_packed_it_is_the_same(own, tmp_path) -> None:
    root = shutil.copytree(own, tmp_path / "rooms")
    plain = folders(root, augment={"scale": [1.0, 2.0]})
    assert not plain.converted and plain.count() == {"train": 6, "test": 3}
    plain.convert(root, lambda *_: None)
    (root / "test/images/seq/0.png").unlink()  # not needed any more
    made = folders(root, augment={"scale": [1.0, 2.0]})
    assert made.converted and made.check() == []
    before, after = folders(own, augment={"scale": [1.0, 2.0]}), made
    for split in ("train", "test"):
        one, other = (m.datasets(split)["rooms"].example(0, np.random.default_rng(3)) for m in (before, after))
        assert one.id == other.id
        np.testing.assert_array_equal(one.inputs["pixels"], other.inputs["pixels"])
        np.testing.assert_array_equal(one.targets["depth"], other.targets["depth"])
        np.testing.assert_array_equal(one.targets["segmentation"], other.targets["segmentation"])


def maps_with(**changes) -> dict:
    return {"maps": OWN_MAPS | {"depth": OWN_MAPS["depth"] | changes}}


LISTED = {
    "splits": {"train": "a.txt"},
    "images": "train/images/{}.png",
    "maps": {"depth": {"files": "train/depth/{}.png", "kind": "depth"}},
}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (maps_with(kind="dept"), "'mixture.maps.depth.kind' must be"),
        (maps_with(file="x"), "unknown key 'mixture.maps.depth.file'"),
        (maps_with(scale=0), "'mixture.maps.depth.scale' must be a number above 0"),
        (maps_with(first=1), "'mixture.maps.depth.first' says nothing about maps of kind 'depth'"),
        (maps_with(files="{split}/depth/*.png"), r"'mixture.maps.depth.files' is .* one \{\} where the id"),
        (maps_with(files="../depth/{}.png"), "it must lie in mixture.path"),
        (maps_with(files="{split}/dpeth/{}.png"), "no folder 'train/dpeth', which task 'depth' needs"),
        ({"maps": OWN_MAPS | {"depth": "x"}}, "must be a mapping with files and kind"),
        ({"maps": {"depth": OWN_MAPS["depth"]}}, "no labels for task 'segmentation'"),
        ({"images": "images"}, "'mixture.images' is 'images'"),
        ({"images": "images/{}.png"}, r"neither a .txt file, nor has 'mixture.images' a \{split\}"),
        ({"splits": None}, r"'mixture.images' has \{split\}, but 'mixture.splits' is null"),
        ({"splits": {"train": "train", "val": "test"}}, "unknown key 'mixture.splits.val'"),
        ({"splits": {"test": "test"}}, "names no training images"),
        ({"splits": {"train": "train", "test": "train"}}, "splits may not overlap"),
        (LISTED, r"there is no list .*a\.txt \('mixture.splits.train'\)"),
        ({"path": "nowhere"}, "the folder of images is not there"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(own, keys, words) -> None:
    names = tuple(keys.get("maps", OWN_MAPS)) if keys is LISTED else ("segmentation", "depth")
    text = "\n".join(str(problem) for problem in folders(own, names, **keys).check())
    assert re.search(words, text), text


def test_files_that_are_not_what_was_said(own, tmp_path) -> None:
    root = shutil.copytree(own, tmp_path / "odd")
    with pytest.raises(UserError, match=r"no file in .* matches 'test/images/\{\}.jpg' \(there is test/images/seq"):
        folders(root, images="{split}/images/{}.jpg").datasets("test")
    Image.new("RGB", SIZE[::-1]).save(root / "test/segmentation/seq/0.png")
    with pytest.raises(UserError, match="a map of kind 'classes' has one channel"):
        folders(root).datasets("test")["odd"].example(0, None)
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(root / "test/segmentation/seq/0.png")
    with pytest.raises(UserError, match="stored label 77 is not one of 13 classes"):
        folders(root).datasets("test")["odd"].example(0, None)
    for share in ("validation", "test"):
        with pytest.raises(UserError, match=f"'mixture.{share}' is 9"):
            folders(root, splits={"train": "train"}, **({"test": 1} | {share: 9})).datasets("train")
