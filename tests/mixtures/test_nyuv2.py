from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from runner.errors import UserError
from runner.mixtures.nyuv2 import NYUv2
from tests.mixtures.miniature import SIZE, expand, tasks, with_holes, write_nyuv2

NAMES = ("segmentation", "depth", "normals")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyuv2(tmp_path_factory.mktemp("data") / "nyuv2", train=12)


def nyuv2(root: Path, names: tuple[str, ...] = NAMES, **keys) -> NYUv2:
    return NYUv2(str(root.parent), tasks=tasks(*names), **({"path": root.name, "size": list(SIZE)} | keys))


def test_values(root) -> None:
    mixture = nyuv2(root)
    assert mixture.check() == []
    assert mixture.setup(None).size == SIZE
    dataset = mixture.datasets("test")["nyuv2"]
    assert len(dataset) == 3
    for k in range(3):
        example, picture = dataset.example(k, None), with_holes(12 + k)
        assert example.id == f"val/{k}"
        np.testing.assert_array_equal(np.rint(example.inputs["pixels"] * 255).transpose(1, 2, 0), picture.image)
        hole = np.zeros(SIZE, bool)
        hole[:6, :8] = True
        expected = np.where(hole, -100, picture.classes.astype(np.int64))
        np.testing.assert_array_equal(example.targets["segmentation"], expected)
        np.testing.assert_array_equal(example.targets["depth"][0], np.where(hole, np.nan, picture.depth))
        normals = example.targets["normals"]
        np.testing.assert_array_equal(np.isnan(normals).any(0), hole)
        np.testing.assert_allclose(normals.transpose(1, 2, 0)[~hole], picture.normals[~hole], atol=1e-5)


def test_files_are_counted_as_numbers(root) -> None:
    """2 before 10: the published numbering, whatever the folder's order."""
    dataset = nyuv2(root).datasets("train")["nyuv2"]
    assert dataset.source.ids == [f"train/{i}" for i in range(12)]


def test_splits(root) -> None:
    mixture = nyuv2(root, validation=0.25)
    train, validation, test = (mixture.datasets(s)["nyuv2"] for s in ("train", "validation", "test"))
    assert sorted([*train.indices, *validation.indices]) == list(range(12))
    assert len(validation) == 3
    assert {test.example(i, None).id for i in range(3)} == {"val/0", "val/1", "val/2"}


def test_the_published_augmentation(root) -> None:
    dataset = nyuv2(root, augment={"scale": [1.0, 1.2, 1.5], "flip": True}).datasets("train")["nyuv2"]
    stored = np.load(root / "train/depth" / f"{dataset.indices[0]}.npy")
    valid = stored[stored > 0]
    seen = set()
    for seed in range(40):
        depth = dataset.example(0, np.random.default_rng(seed)).targets["depth"]
        assert depth.shape == (1, *SIZE)
        for scale in (1.0, 1.2, 1.5):
            if np.isin(depth[~np.isnan(depth)], valid / np.float32(scale)).all():
                seen.add(scale)
    assert seen == {1.0, 1.2, 1.5}


def test_eight_bit_images(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "nyuv2")
    np.save(copy / "val/image/0.npy", with_holes(12).image)
    for index in range(2):
        example = nyuv2(copy).datasets("test")["nyuv2"].example(index, None)
        np.testing.assert_array_equal(
            np.rint(example.inputs["pixels"] * 255).transpose(1, 2, 0), with_holes(12 + index).image
        )


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("image", np.full((*SIZE, 3), 130.0), "has values outside"),
        ("image", np.zeros(SIZE), "not \\(height, width, 3\\)"),
        ("depth", np.zeros((*SIZE, 2)), "not \\(height, width\\)"),
        ("normal", np.zeros(SIZE), "not \\(height, width, 3\\)"),
        ("label", np.full(SIZE, 13), "stored label 13 is not one of 13 classes"),
    ],
)
def test_files_that_hold_something_else(root, tmp_path, file, array, message) -> None:
    copy = shutil.copytree(root, tmp_path / "nyuv2")
    np.save(copy / f"val/{file}/0.npy", array)
    with pytest.raises(UserError, match=message):
        nyuv2(copy).datasets("test")["nyuv2"].example(0, None)


def test_missing_data(tmp_path) -> None:
    problem = NYUv2(str(tmp_path / "nowhere"), tasks=tasks(*NAMES), path="nyuv2", size=list(SIZE)).check()[0]
    assert f"{tmp_path}/nowhere/nyuv2" in problem.what
    assert "dropbox.com" in problem.hint
    assert "mixture=rooms needs no files" in problem.hint
    assert problem.see == "runner data prepare nyuv2"


def test_missing_maps(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "nyuv2")
    (copy / "train/normal/3.npy").unlink()
    with pytest.raises(UserError, match="1 of 12 examples have no file"):
        nyuv2(copy).datasets("train")
    partial = nyuv2(copy, partial=True)
    found = [e for s in ("train", "validation") for e in all_of(partial, s)]
    assert sorted(e.id for e in found if "normals" not in e.targets) == ["train/3"]


def all_of(mixture, split):
    dataset = mixture.datasets(split)["nyuv2"]
    return [dataset.example(i, None) for i in range(len(dataset))]


def test_tasks_that_the_archive_lacks(root) -> None:
    assert "no labels for task 'edge'" in nyuv2(root, (*NAMES, "edge")).check()[0].what


def test_real_images(runner_data: Path, tmp_path: Path) -> None:
    root = expand(runner_data, tmp_path / "data/nyuv2", "nyuv2")
    mixture = NYUv2(str(tmp_path / "data"), tasks=tasks(*NAMES), path="nyuv2", size=[120, 160], validation=1)
    assert mixture.check() == []
    for k, example in enumerate(all_of(mixture, "test")):
        labels = np.load(root / "val/label" / f"{k}.npy")
        np.testing.assert_array_equal(example.targets["segmentation"], np.where(labels < 0, -100, labels))
        np.testing.assert_array_equal(example.targets["depth"][0], np.load(root / f"val/depth/{k}.npy")[..., 0])
        image = np.load(root / f"val/image/{k}.npy").transpose(2, 0, 1)
        np.testing.assert_allclose(example.inputs["pixels"], image, atol=1e-6)
        normals = example.targets["normals"]
        np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
