"""Folders of images with maps of the user's own, against what was written into them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures.folders import Folders
from runner.mixtures.nyud import NYUD
from tests.mixtures.archives import rooms, write_folders
from tests.mixtures.made import problems
from tests.mixtures.miniature import SIZE, write_nyud_mt
from tests.mixtures.miniature import tasks as dense_tasks

SEGMENTATION = {"_target_": "runner.tasks.segmentation.Segmentation", "num_classes": 3}
TASKS = {
    "segmentation": SEGMENTATION,
    "depth": {"_target_": "runner.tasks.depth.Depth"},
    "normals": {"_target_": "runner.tasks.normals.Normals"},
    "edge": {"_target_": "runner.tasks.edge.Edge"},
    "saliency": {"_target_": "runner.tasks.saliency.Saliency"},
    "heat": {"_target_": "runner.tasks.pixel_regression.PixelRegression"},
}
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(4)]
MASKS = [RNG.integers(0, 3, (6, 8)).astype(np.uint8) for _ in range(4)]


def save(file: Path, array: np.ndarray, **keys: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **keys)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three images of train, one of test, masks of numbers with a pixel of 255."""
    for number, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True)):
        split = "train" if number < 3 else "test"
        save(tmp_path / split / "images" / f"a {number}.png", image)
        save(tmp_path / split / "masks" / f"a {number}.png", np.where(np.arange(8) == 7, 255, mask).astype(np.uint8))
    return tmp_path


def folders(place: Path, maps: Any = None, tasks: Any = None, **keys: Any) -> Folders:
    given = {"images": "{split}/images", "size": [6, 8], "validation": 1} | keys
    maps = {"segmentation": "{split}/masks"} if maps is None else maps
    tasks = {"segmentation": SEGMENTATION} if tasks is None else tasks
    return Folders("", tasks=tasks, path=str(place), maps=maps, **given)


def refused(mixture: Folders) -> str:
    if found := mixture.check():
        return problems(UserError(found))
    with pytest.raises(UserError) as caught:
        mixture.setup(None)
    return problems(caught.value)


def target(mixture: Folders, task: str = "segmentation", index: int = 0) -> np.ndarray:
    assert mixture.check() == []
    mixture.setup(None)
    dataset = mixture.datasets("test")["folders"]
    return pickle.loads(pickle.dumps(dataset)).example(index, None).targets[task]  # noqa: S301


def expected() -> np.ndarray:
    out = MASKS[3].astype(np.int64)
    out[:, 7] = -100
    return out


def test_images_masks_splits_and_ids(place):
    mixture = folders(place)
    np.testing.assert_array_equal(target(mixture), expected())
    assert [len(mixture.datasets(s)["folders"]) for s in ("train", "validation", "test")] == [2, 1, 1]
    example = mixture.datasets("test")["folders"].example(0, None)
    assert example.id == "test/a 3"
    np.testing.assert_allclose(example.inputs["pixels"], IMAGES[3].transpose(2, 0, 1) / 255, atol=1e-6)
    ids = [
        mixture.datasets(s)["folders"].example(i, None).id
        for s, n in (("train", 2), ("validation", 1))
        for i in range(n)
    ]
    assert sorted(ids) == ["train/a 0", "train/a 1", "train/a 2"]


def test_palette_masks_and_grey_ones_saved_in_colour(place):
    palette = Image.fromarray(MASKS[3]).convert("P")
    palette.putdata(MASKS[3].ravel().tolist())
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    palette.save(place / "test" / "masks" / "a 3.png")
    np.testing.assert_array_equal(target(folders(place)), MASKS[3])
    save(place / "test" / "masks" / "a 3.png", np.stack([MASKS[3]] * 3, 2))
    np.testing.assert_array_equal(target(folders(place)), MASKS[3])


def test_stored_values_and_names_after_the_image(place):
    for split, numbers in (("train", range(3)), ("test", [3])):
        for number in numbers:
            stored = np.array([0, 128, 254], np.uint8)[MASKS[number]]
            stored[:, 7] = 255
            save(place / split / "labels" / f"a {number}_mask.png", stored)
    maps = {"segmentation": {"files": "{split}/labels/{}_mask.png", "values": [0, 128, 254]}}
    np.testing.assert_array_equal(target(folders(place, maps)), expected())
    maps["segmentation"]["values"] = [0, 127, 254]
    assert "pixels are 128, which is not among mixture.maps.segmentation.values" in refused(folders(place, maps))


def test_colours(place):
    table = np.array([[0, 0, 0], [255, 0, 0], [10, 20, 30]], np.uint8)
    for split, numbers in (("train", range(3)), ("test", [3])):
        for number in numbers:
            stored = table[MASKS[number]]
            stored[:, 7] = 255
            save(place / split / "masks" / f"a {number}.png", stored)
    found = refused(folders(place))
    assert "is a picture in colours" in found
    assert "mixture.maps.segmentation.colours=[[0,0,0],[10,20,30],[255,0,0]" in found
    maps = {"segmentation": {"files": "{split}/masks", "colours": table.tolist()}}
    np.testing.assert_array_equal(target(folders(place, maps)), expected())


def test_depth_normals_edges_and_numbers(place):
    values = RNG.integers(1, 4000, (6, 8)).astype(np.uint16)
    normals = RNG.normal(size=(6, 8, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    for split, numbers in (("train", range(3)), ("test", [3])):
        for number in numbers:
            save(place / split / "depth" / f"a {number}.png", values)
            save(place / split / "edge" / f"a {number}.png", (values > 2000))
            save(place / split / "salient" / f"a {number}.png", ((values > 2000) * 255).astype(np.uint8))
            save(place / split / "ones" / f"a {number}.png", (values > 2000).astype(np.uint8))
            save(place / split / "some" / f"a {number}.png", (values > 2000) * np.uint8(1) + (values > 3000))
            (place / split / "normals").mkdir(exist_ok=True)
            np.save(place / split / "normals" / f"a {number}.npy", normals)
            (place / split / "heat").mkdir(exist_ok=True)
            np.save(place / split / "heat" / f"a {number}.npy", normals[..., :1])
    maps = {
        "depth": {"files": "{split}/depth", "scale": 0.001},
        "normals": "{split}/normals",
        "edge": "{split}/edge",
        "saliency": "{split}/salient",
        "heat": "{split}/heat",
        "ones": "{split}/ones",
        "some": {"files": "{split}/some", "unlabelled": [2]},
        "far": {"files": "{split}/depth", "scale": 0.001, "unlabelled": [int(values[2, 3])]},
    }
    kinds = {"ones": "saliency", "some": "saliency", "far": "depth"}
    mixture = folders(place, maps, {task: TASKS[kinds.get(task, task)] for task in maps})
    np.testing.assert_allclose(target(mixture, "depth")[0], values / 1000, rtol=1e-6)
    np.testing.assert_allclose(target(mixture, "normals"), normals.transpose(2, 0, 1), atol=1e-6)
    for task in ("edge", "saliency", "ones"):
        np.testing.assert_array_equal(target(mixture, task)[0], values > 2000)
    np.testing.assert_array_equal(target(mixture, "some")[0], np.where(values > 3000, np.nan, values > 2000))
    known = np.where(values == values[2, 3], np.nan, values / 1000)
    np.testing.assert_allclose(target(mixture, "far")[0], known, rtol=1e-6)
    np.testing.assert_allclose(target(mixture, "heat")[0], normals[..., 0], atol=1e-6)
    unclear = folders(place, {"depth": "{split}/depth"}, {"depth": TASKS["depth"]})
    assert "holds integers (uint16), and nothing says what they mean" in refused(unclear)


def test_lists_for_images_that_share_a_folder(tmp_path):
    for number, (image, mask) in enumerate(zip(IMAGES, MASKS, strict=True)):
        save(tmp_path / "JPEGImages" / f"{number}.jpg", image)
        save(tmp_path / "Classes" / f"{number}.png", mask)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "train.txt").write_text("0\r\n2\r\n\r\n")
    (tmp_path / "sets" / "val.txt").write_text("1.jpg\n")
    (tmp_path / "sets" / "test.txt").write_text("3\n")
    keys = {"images": "JPEGImages", "lists": "sets/{split}.txt"}
    mixture = folders(tmp_path, {"segmentation": "Classes"}, **keys)
    np.testing.assert_array_equal(target(mixture), MASKS[3])
    assert [len(mixture.datasets(s)["folders"]) for s in ("train", "validation", "test")] == [2, 1, 1]
    (tmp_path / "sets" / "test.txt").write_text("3\n7\n")
    assert "1 of 2 images of mixture.lists are not in" in refused(
        folders(tmp_path, {"segmentation": "Classes"}, **keys)
    )


def test_no_splits_at_all_and_names_of_ones_own(tmp_path):
    for number in range(10):
        save(tmp_path / "images" / f"{number}.png", IMAGES[0])
        save(tmp_path / "masks" / f"{number}.png", MASKS[0])
    maps = {"segmentation": "masks"}
    assert "for testing (mixture.images)" in refused(folders(tmp_path, maps, images="images"))
    mixture = folders(tmp_path, maps, images="images", test=0.3, validation=2)
    mixture.setup(None)
    ids = {s: {d.example(i, None).id for i in range(len(d))} for s in ("train", "validation", "test")
           for d in [mixture.datasets(s)["folders"]]}  # fmt: skip
    assert {s: len(found) for s, found in ids.items()} == {"train": 5, "validation": 2, "test": 3}
    assert len(set.union(*ids.values())) == 10
    for split in ("tr", "te"):
        save(tmp_path / "own" / split / "0.png", IMAGES[0])
        save(tmp_path / "own" / split / "1.png", IMAGES[0])
    keys = {"images": "own/{split}", "splits": {"train": "tr", "test": "te", "validation": None}}
    assert len(folders(tmp_path, maps, **keys).datasets("test")["folders"]) == 2
    keys["splits"]["test"] = "tests"
    assert re.search(r"there is no .*own/tests \(mixture.splits.test=tests\)", refused(folders(tmp_path, maps, **keys)))


def test_names_with_folders(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for number in range(count):
            save(tmp_path / split / "images" / "walk" / f"{number}.png", IMAGES[3])
            save(tmp_path / split / "masks" / "walk" / f"{number}.png", MASKS[3])
    np.testing.assert_array_equal(target(folders(tmp_path)), MASKS[3])
    mixture = folders(tmp_path, {"segmentation": "{split}/masks/{}.png"}, images="{split}/images/{}.png")
    np.testing.assert_array_equal(target(mixture), MASKS[3])
    assert mixture.datasets("test")["folders"].example(0, None).id == "test/walk/0"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"maps": {}}, "nothing says where the maps of task 'segmentation' are"),
        ({"maps": {"segmentation": {"files": "{split}/masks", "value": [0]}}}, "maps.segmentation.value'"),
        ({"maps": {"segmentation": {"files": "{split}/masks", "values": [0]}}}, "names 1 classes"),
        ({"maps": {"segmentation": {"files": "{split}/masks", "kind": "depth"}}}, "'segmentation' reads classes"),
        ({"maps": {"segmentation": "{split}/mask"}}, "have no map of task 'segmentation'"),
        ({"images": "{split}/image"}, "has no {split}/image for training"),
        ({"lists": "train.txt"}, "it needs {split} in place of the split's name"),
        ({"splits": {"dev": "val"}}, "unknown key 'mixture.splits.dev'"),
        ({"augment": {"max_share": 0.5}}, "looks at a map of classes"),
        ({"tasks": {"segmentation": SEGMENTATION | {"num_classes": 2}}}, "is not one of 2 classes"),
    ],
)  # fmt: skip
def test_what_is_refused(place, change, expected):
    assert expected in refused(folders(place, **change))


def test_files_that_do_not_belong_together(place):
    save(place / "test" / "masks" / "a 3.png", np.ascontiguousarray(MASKS[3].T))
    assert "has 8x6 pixels (height x width), its image 6x8" in refused(folders(place))
    save(place / "test" / "masks" / "a 3.jpg", MASKS[3])
    assert "a 3.jpg and a 3.png" in refused(folders(place))
    (place / "test" / "masks" / "a 3.png").unlink()
    assert "compressed with losses" in refused(folders(place))
    (place / "test" / "masks" / "a 3.jpg").unlink()
    assert "1 of 1 images have no map" in refused(folders(place))


def test_images_without_a_map_where_that_is_allowed(place):
    (place / "train" / "masks" / "a 1.png").unlink()
    assert "1 of 3 images have no map" in refused(folders(place))
    mixture = folders(place, partial=True)
    mixture.setup(None)
    parts = [mixture.datasets(s)["folders"] for s in ("train", "validation")]
    there = {d.example(i, None).id: bool(d.example(i, None).targets) for d in parts for i in range(len(d))}
    assert there == {"train/a 0": True, "train/a 1": False, "train/a 2": True}


def test_all_runs_see_the_same_crops(place):
    """`max_share` looks at the classes, also where their task is left out."""
    maps = {"segmentation": {"files": "{split}/masks", "kind": "classes"}, "saliency": "{split}/masks"}
    keys = {"augment": {"max_share": 0.4, "crop": [3, 3]}}
    tasks = {"segmentation": SEGMENTATION, "saliency": TASKS["saliency"]}
    both = folders(place, maps, tasks, **keys).datasets("train")["folders"]
    alone = folders(place, maps, {"saliency": tasks["saliency"]}, **keys).datasets("train")["folders"]
    plain = folders(place, maps, tasks, augment={"crop": [3, 3]}).datasets("train")["folders"]
    seeds = range(20)
    crops = [[d.example(0, np.random.default_rng(s)).inputs["pixels"] for s in seeds] for d in (both, alone, plain)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (np.array(crops[0]) != np.array(crops[2])).any()


@pytest.mark.parametrize("device", ["loader", "accelerator"])
def test_a_published_layout_gives_what_its_own_reader_gives(tmp_path, device):
    """Splits, evaluation, and training with its zooms, crops by classes, flips and colours, to the last bit."""
    root = write_nyud_mt(tmp_path / "NYUD_MT")
    maps = {
        "segmentation": {"files": "segmentation", "values": list(range(1, 14)), "unlabelled": [0], "kind": "classes"},
        "depth": "depth/{}.npy",
        "normals": "normals/{}.png",
        "edge": "edge",
    }
    augment = {"scale": [0.5, 2.0], "between": True, "crop": [40, 52], "max_share": 0.4, "device": device}
    keys = {"size": list(SIZE), "fit": "pad", "validation": 2, "augment": augment}
    lists = {"lists": "gt_sets/{split}.txt", "splits": {"test": "val", "validation": None}}
    ours = folders(root, maps, dense_tasks(), images="images/{}.png", **keys, **lists)
    theirs = NYUD(str(tmp_path), tasks=dense_tasks(), path="NYUD_MT", **keys)
    assert ours.check() == []
    assert ours.setup(None) == theirs.setup(None)
    for split in ("train", "validation", "test"):
        one, other = ours.datasets(split)["folders"], theirs.datasets(split)["nyud"]
        assert len(one) == len(other)
        for i in range(len(one)):
            found, wanted = (d.example(i, np.random.default_rng(i) if split == "train" else None) for d in (one, other))
            assert found.id.endswith(wanted.id) and set(found.targets) == set(wanted.targets)
            np.testing.assert_array_equal(found.inputs["pixels"], wanted.inputs["pixels"])
            for task, values in wanted.targets.items():
                np.testing.assert_array_equal(found.targets[task], values)
    assert one.hands_over_stored("cpu") == (device == "accelerator")


def test_rooms_written_as_folders(tmp_path):
    """What the conformance suite reads, by the shipped option's own keys."""
    write_folders(tmp_path, rooms(4), rooms(2, 4))
    mixture = folders(tmp_path, tasks={"segmentation": SEGMENTATION | {"num_classes": 13}}, size=[16, 16])
    assert target(mixture).shape == (16, 16)
