from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures.nyud import NYUD
from tests.mixtures.miniature import SIZE, expand, tasks, with_holes, write_nyud_mt


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyud_mt(tmp_path_factory.mktemp("data") / "NYUD_MT")


def nyud(root: Path, names: tuple[str, ...] = (), **keys) -> NYUD:
    return NYUD(
        str(root.parent),
        tasks=tasks(*names),
        **({"path": root.name, "size": list(SIZE), "fit": "pad", "validation": 2} | keys),
    )


def test_nothing_is_wrong_and_nothing_is_opened(root) -> None:
    mixture = nyud(root)
    assert mixture.check() == []
    assert mixture.setup(None).size == SIZE


def test_values(root) -> None:
    """The test split is the published val: rooms 6, 7, 8."""
    dataset = nyud(root).datasets("test")["nyud"]
    assert dataset.tasks == ("segmentation", "depth", "normals", "edge")
    for k in range(3):
        example, picture = dataset.example(k, None), with_holes(6 + k)
        assert example.id == f"{6 + k:04d}"
        np.testing.assert_array_equal(np.rint(example.inputs["pixels"] * 255).transpose(1, 2, 0), picture.image)
        labels = picture.classes.astype(np.int64)
        labels[:6, :8] = -100
        np.testing.assert_array_equal(example.targets["segmentation"], labels)
        depth = picture.depth.copy()
        depth[:6, :8] = np.nan
        np.testing.assert_array_equal(example.targets["depth"][0], depth)
        normals = example.targets["normals"].transpose(1, 2, 0)
        assert np.isnan(normals[:6, :8]).all()
        valid = ~np.isnan(normals[..., 0])
        assert valid.mean() == 1 - 48 / (SIZE[0] * SIZE[1])
        np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-5)
        angle = np.degrees(np.arccos(np.clip((normals[valid] * picture.normals[valid]).sum(-1), -1, 1)))
        assert angle.max() < 0.6  # 8 bits
        np.testing.assert_array_equal(example.targets["edge"][0], picture.edge)


def test_splits(root) -> None:
    mixture = nyud(root)

    def ids(split):
        dataset = mixture.datasets(split)["nyud"]
        return [dataset.example(i, None).id for i in range(len(dataset))]

    train, validation, test = ids("train"), ids("validation"), ids("test")
    assert sorted(train + validation) == [f"{i:04d}" for i in range(6)]
    assert len(validation) == 2
    assert test == ["0006", "0007", "0008"]
    assert [len(nyud(root, validation=0.34).datasets(s)["nyud"]) for s in ("train", "validation")] == [4, 2]
    assert ids("validation") == validation
    others = {tuple(nyud(root, split_seed=s).datasets("validation")["nyud"].indices) for s in range(8)}
    assert len(others) > 1


@pytest.mark.parametrize("validation", [0.0, 1.0, 6, 10])
def test_a_split_may_not_be_empty(root, validation) -> None:
    with pytest.raises(UserError, match="leaves no example for train or validation"):
        nyud(root, validation=validation).datasets("train")


def test_a_subset_of_tasks_reads_no_other_map(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    shutil.rmtree(copy / "edge")
    shutil.rmtree(copy / "segmentation")
    mixture = nyud(copy, ("depth", "normals"))
    assert mixture.check() == []
    assert set(mixture.datasets("train")["nyud"].example(0, None).targets) == {"depth", "normals"}
    problem = nyud(copy, ("depth", "edge")).check()[0]
    assert "has no folder 'edge', which task 'edge' needs" in problem.what
    assert "tasks=[depth]" in problem.hint


def test_augmented_training(root) -> None:
    augment = {"scale": [0.5, 2.0], "between": True, "crop": [40, 52], "max_share": 0.75, "flip": True, "colour": True}
    mixture = nyud(root, augment=augment)
    assert mixture.setup(None).size == (40, 52)
    dataset = mixture.datasets("train")["nyud"]
    for i in range(len(dataset)):
        example = dataset.example(i, np.random.default_rng(i))
        assert example.inputs["pixels"].shape == (3, 40, 52)
        assert example.targets["segmentation"].shape == (40, 52)
        assert {example.targets[t].shape[0] for t in ("depth", "edge")} == {1}
    assert mixture.datasets("validation")["nyud"].augment is None
    assert mixture.datasets("test")["nyud"].augment is None


def test_padding_and_stretching(root) -> None:
    padded = nyud(root, size=[56, 72]).datasets("test")["nyud"].example(0, None)
    stretched = nyud(root, size=[24, 32], fit="resize").datasets("test")["nyud"].example(0, None)
    assert np.isnan(padded.targets["depth"][0, :4]).all()
    plain = nyud(root).datasets("test")["nyud"].example(0, None)
    np.testing.assert_array_equal(padded.targets["depth"][0, 4:52, 4:68], plain.targets["depth"][0])
    assert stretched.inputs["pixels"].shape == (3, 24, 32)
    assert np.nanmax(stretched.targets["depth"]) <= np.nanmax(plain.targets["depth"])


def test_normals_as_jpeg(tmp_path) -> None:
    root = write_nyud_mt(tmp_path / "jpegs", normals="jpg")
    normals = nyud(root, ("normals",)).datasets("test")["nyud"].example(0, None).targets["normals"]
    lengths = np.linalg.norm(normals, axis=0)
    np.testing.assert_allclose(lengths[~np.isnan(lengths)], 1, atol=1e-5)
    assert np.isnan(lengths[:4, :6]).all()


def test_missing_data_says_where_and_how(tmp_path) -> None:
    problem = NYUD(str(tmp_path / "nowhere"), tasks=tasks(classes=40), path="NYUD_MT", size=list(SIZE)).check()[0]
    for place in (tmp_path / "nowhere/NYUD_MT", Path.cwd() / "data/NYUD_MT", Path.cwd() / "NYUD_MT"):
        assert str(place) in problem.what
    assert "NYUD" in problem.what
    assert "NYUDv2.tar.gz" in problem.hint
    assert "mixture=rooms needs no files" in problem.hint
    assert "expand.py" not in problem.hint
    with pytest.raises(UserError, match="is not there"):
        NYUD(str(tmp_path / "nowhere"), tasks=tasks(classes=40), path="NYUD_MT", size=list(SIZE)).datasets("train")


def test_missing_data_names_the_script_that_makes_it(tmp_path) -> None:
    script = tmp_path / "my data/nyud/expand.py"
    script.parent.mkdir(parents=True)
    script.touch()
    problem = NYUD(str(tmp_path / "my data"), tasks=tasks(classes=40), path="NYUD_MT", size=list(SIZE)).check()[0]
    assert f"python '{script}' --out data/NYUD_MT --layout nyud_mt" in problem.hint


def test_missing_files(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    (copy / "depth/0003.npy").unlink()
    with pytest.raises(UserError, match=r"1 of 6 examples have no file in .*depth, such as 0003\.npy"):
        nyud(copy).datasets("train")
    partial = nyud(copy, partial=True)
    targets = {e.id: e.targets for s in ("train", "validation") for e in examples(partial, s)}
    assert "depth" not in targets["0003"]
    assert "normals" in targets["0003"]
    assert "depth" in targets["0004"]


def test_an_image_without_the_labels_that_decide_about_crops(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    for path in (copy / "segmentation").iterdir():
        path.unlink()
    dataset = nyud(copy, ("depth",), partial=True, augment={"max_share": 0.75}).datasets("train")["nyud"]
    assert set(dataset.example(0, np.random.default_rng(0)).targets) == {"depth"}


def examples(mixture, split):
    dataset = mixture.datasets(split)["nyud"]
    return [dataset.example(i, None) for i in range(len(dataset))]


def test_damaged_files(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    for folder, name in (("images", "0006.png"), ("depth", "0007.npy"), ("edge", "0008.png")):
        path = copy / folder / name
        path.write_bytes(path.read_bytes()[:40])
    dataset = nyud(copy).datasets("test")["nyud"]
    for k, name in enumerate(("images/0006.png", "depth/0007.npy", "edge/0008.png")):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            dataset.example(k, None)


def test_pickles_are_refused(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    np.save(copy / "depth/0006.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        nyud(copy).datasets("test")["nyud"].example(0, None)


def test_the_wrong_number_of_classes(root) -> None:
    mixture = NYUD(str(root.parent), tasks=tasks("segmentation", classes=2), path="NYUD_MT", size=list(SIZE))
    with pytest.raises(UserError, match="is not one of 2 classes") as caught:
        mixture.datasets("test")["nyud"].example(0, None)
    assert "mixture.tasks.segmentation" in str(caught.value)


def test_an_empty_list(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "NYUD_MT")
    (copy / "gt_sets/val.txt").write_text("\n")
    with pytest.raises(UserError, match="names no image"):
        nyud(copy).datasets("test")


def test_mistakes_in_keys_come_before_the_data(tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        NYUD(str(tmp_path), tasks=tasks(), path="NYUD_MT", size=[448], augment={"flipp": True})
    assert len(caught.value.problems) == 2
    assert "did you mean 'flip'?" in str(caught.value)


def test_real_images(runner_data: Path, tmp_path: Path) -> None:
    root = expand(runner_data, tmp_path / "data/NYUD_MT", "nyud_mt")
    mixture = NYUD(str(tmp_path / "data"), tasks=tasks(classes=40), path="NYUD_MT", size=[120, 160], validation=1)
    assert mixture.check() == []
    assert [len(mixture.datasets(s)["nyud"]) for s in ("train", "validation", "test")] == [3, 1, 4]
    for example in examples(mixture, "test"):
        stored = np.asarray(Image.open(root / "segmentation" / f"{example.id}.png")).astype(int)
        np.testing.assert_array_equal(example.targets["segmentation"], np.where(stored == 0, -100, stored - 1))
        depth = np.load(root / "depth" / f"{example.id}.npy")
        np.testing.assert_array_equal(example.targets["depth"][0], depth)
        assert 0.3 < np.median(depth) < 9
        normals = example.targets["normals"]
        np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
        assert (normals[2] < 0).mean() > 0.9  # towards the camera; plane fits across borders may not be
        assert 0.005 < example.targets["edge"].mean() < 0.5
