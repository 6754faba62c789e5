"""Readers of the published dense archives, on miniatures in exactly their layouts."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures import packed
from runner.mixtures.cityscapes import CATEGORY, Cityscapes
from runner.mixtures.cityscapes2 import Cityscapes2
from runner.mixtures.dense_archive import DenseArchive
from runner.mixtures.nyuv2_hub import NYUv2Hub
from runner.mixtures.pascal_context import PascalContext
from runner.mixtures.taskonomy import Taskonomy
from tests.mixtures.archives import (
    BUILDINGS,
    CITIES,
    Picture,
    body,
    hole,
    real,
    rooms,
    write_cityscapes,
    write_cityscapes2,
    write_nyuv2_hub,
    write_pascal_context,
    write_taskonomy,
)
from tests.mixtures.miniature import DENSE_TASKS, SIZE

TASKS = DENSE_TASKS | {
    "human_parts": {"_target_": "runner.tasks.segmentation.HumanParts", "num_classes": 7},
    "saliency": {"_target_": "runner.tasks.saliency.Saliency"},
    "keypoints": {"_target_": "runner.tasks.pixel_regression.PixelRegression"},
}
TRAIN, VAL = 4, 2


def tasks(kind: type[DenseArchive], *names: str, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    chosen = {name: dict(TASKS[name]) for name in names or kind.offered}
    if kind is Taskonomy and "edge" in chosen:
        chosen["edge"] = dict(TASKS["keypoints"])
    if "segmentation" in chosen:
        chosen["segmentation"]["num_classes"] = kind.offered["segmentation"].num_classes
    return {name: task | changes.get(name, {}) for name, task in chosen.items()}


def taskonomy(root: Path, train: list[Picture], val: list[Picture]) -> Path:
    return write_taskonomy(root, [*train, *val, *rooms(2, 90)])


WRITERS: dict[type[DenseArchive], Callable[..., Path]] = {
    PascalContext: write_pascal_context,
    Cityscapes: write_cityscapes,
    Cityscapes2: write_cityscapes2,
    Taskonomy: taskonomy,
    NYUv2Hub: write_nyuv2_hub,
}
KINDS = list(WRITERS)


def make(kind: type[DenseArchive], root: Path, *names: str, changes: Any = None, **keys: Any) -> DenseArchive:
    own: dict[str, Any] = {"buildings": BUILDINGS} if kind is Taskonomy else {"validation": 1}
    keys = {"path": root.name, "size": list(SIZE), "fit": "pad", **own} | keys
    return kind(str(root.parent), tasks=tasks(kind, *names, **(changes or {})), **keys)


@pytest.fixture(scope="module")
def pictures() -> tuple[list[Picture], list[Picture]]:
    return rooms(TRAIN), rooms(VAL, TRAIN)


@pytest.fixture(scope="module")
def archives(tmp_path_factory, pictures) -> dict[type[DenseArchive], Path]:
    place = tmp_path_factory.mktemp("archives")
    return {kind: write(place / kind.option, *pictures) for kind, write in WRITERS.items()}


def every(mixture: DenseArchive, split: Any) -> list[Any]:
    dataset = mixture.datasets(split)[mixture.option]
    return [dataset.example(i, None) for i in range(len(dataset))]


def labels(picture: Picture, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> np.ndarray:
    return np.where(hole(picture), -100, change(picture.classes.astype(np.int64)))


def pixels(example: Any) -> np.ndarray:
    return np.rint(example.inputs["pixels"] * 255).transpose(1, 2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_and_the_splits_are_the_published_ones(kind, archives) -> None:
    mixture = make(kind, archives[kind])
    assert mixture.check() == []
    assert mixture.setup(None).size == SIZE
    ids = [[e.id for e in every(mixture, s)] for s in ("train", "validation", "test")]
    assert len({name for names in ids for name in names}) == sum(map(len, ids)) == (8 if kind is Taskonomy else 6)
    assert len(ids[2]) == 2
    assert len(ids[1]) == (2 if kind is Taskonomy else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_examples_are_the_same_to_the_last_bit(kind, archives, tmp_path) -> None:
    plain = make(kind, archives[kind], partial=True)
    names = list(kind.offered)
    splits = {s: plain.open(s, names) for s in sorted(set(plain.listed.values()))}
    packed.pack(tmp_path / "set", splits, names, lambda *_: None)
    copy = make(kind, tmp_path / "set", partial=True)
    assert copy.check() == []
    for split in ("train", "validation", "test"):
        for a, b in zip(every(plain, split), every(copy, split), strict=True):
            assert (a.id, a.targets.keys()) == (b.id, b.targets.keys())
            np.testing.assert_array_equal(a.inputs["pixels"], b.inputs["pixels"])
            for task, target in a.targets.items():
                np.testing.assert_array_equal(target, b.targets[task])


@pytest.mark.parametrize("kind", KINDS)
def test_records_travel_to_workers(kind, archives) -> None:
    dataset = make(kind, archives[kind]).datasets("train")[kind.option]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    np.testing.assert_array_equal(copy.example(0, None).inputs["pixels"], dataset.example(0, None).inputs["pixels"])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_data_is_one_error_that_says_how_to_come_by_it(kind, tmp_path) -> None:
    (problem,) = make(kind, tmp_path / "nowhere").check()
    assert str(tmp_path / "nowhere") in problem.what
    assert "https://" in problem.hint or "hub" in problem.hint
    assert problem.see == f"runner data prepare {kind.option}"


LOST = {
    PascalContext: ("sal_distill", "normals_distill", "no folder 'normals_distill', which task 'normals' needs"),
    Cityscapes: ("gtFine/val", "disparity/train", "no folder 'gtFine/val', which task 'segmentation' needs"),
    Cityscapes2: (
        "val/label_7",
        "train/depth",
        "no folder 'val/label_7' or 'val/label', which task 'segmentation' needs",
    ),
    Taskonomy: ("normal/merom", "edge_texture", "no folder 'normal/merom' or 'normal/taskonomy/merom'"),
}


@pytest.mark.parametrize("kind", LOST)
def test_missing_folders_are_one_error_that_names_them_all(kind, archives, tmp_path) -> None:
    root = shutil.copytree(archives[kind], tmp_path / "set")
    *folders, text = LOST[kind]
    for folder in folders:
        shutil.rmtree(root / folder)
    (problem,) = make(kind, root).check()
    assert text in problem.what
    assert all(folder in problem.what for folder in folders)


FILES = {
    PascalContext: ("human_parts/2008_000001.mat", "semseg/VOC12/2008_000003.png", ("human_parts", "segmentation")),
    Cityscapes: (
        "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png",
        "disparity/train/aachen/aachen_000002_000019_disparity.png",
        ("segmentation", "depth"),
    ),
    Cityscapes2: ("train/label_7/1.npy", "train/depth/3.npy", ("segmentation", "depth")),
    Taskonomy: (
        "normal/hanson/point_4_view_1_domain_normal.png",
        "edge_texture/merom/point_1_view_1_domain_edge_texture.png",
        ("normals", "edge"),
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_missing_files_are_one_error_that_names_all_kinds(kind, archives, tmp_path) -> None:
    root = shutil.copytree(archives[kind], tmp_path / "set")
    *files, names = FILES[kind]
    for file in files:
        (root / file).unlink()
    with pytest.raises(UserError) as caught:
        make(kind, root).datasets("train")
    (problem,) = caught.value.problems
    assert problem.what.count("examples have no file in") == 2
    assert all(Path(file).name in problem.what for file in files)
    targets = [e.targets for s in ("train", "validation") for e in every(make(kind, root, partial=True), s)]
    for name in names:
        assert sum(name not in t for t in targets) >= 1


def test_pascal_context(archives, pictures) -> None:
    mixture = make(PascalContext, archives[PascalContext])
    for example, (i, picture) in zip(every(mixture, "test"), enumerate(pictures[1]), strict=True):
        assert np.abs(pixels(example) - picture.image).mean() < 8  # JPEG
        np.testing.assert_array_equal(example.targets["segmentation"], labels(picture))
        expected = picture.classes == picture.classes[-1, 0]
        np.testing.assert_array_equal(example.targets["saliency"][0], expected)
        known = ~np.isnan(example.targets["normals"][0])
        np.testing.assert_array_equal(known, (picture.classes < 8) & ~hole(picture))  # CONTEXT's first eight
        angle = (example.targets["normals"].transpose(1, 2, 0)[known] * picture.normals[known]).sum(-1)
        assert angle.min() > np.cos(np.radians(0.6))
        assert ("human_parts" in example.targets) == (i % 2 == 0)
        if i % 2 == 0:
            mask, half = body(picture), np.arange(SIZE[0])[:, None] < SIZE[0] // 2
            np.testing.assert_array_equal(example.targets["human_parts"], np.where(mask, np.where(half, 1, 4), 0))


def test_pascal_context_edges_are_thin_borders_of_labels(archives, pictures) -> None:
    from scipy.ndimage import generic_filter, label

    mixture = make(PascalContext, archives[PascalContext], "edge")
    for example, picture in zip(every(mixture, "test"), pictures[1], strict=True):
        edge = example.targets["edge"][0] == 1
        assert 0.01 < edge.mean() < 0.2
        change = generic_filter(picture.classes, lambda x: x.min() != x.max(), size=3, mode="nearest").astype(bool)
        assert not (edge & ~change).any()
        square = edge[:-1, :-1] & edge[1:, :-1] & edge[:-1, 1:] & edge[1:, 1:]
        assert square.mean() < 0.002  # a pixel wide, but where lines cross
        assert label(edge, np.ones((3, 3)))[1] <= label(change, np.ones((3, 3)))[1] + 1


def test_an_annotation_of_something_else(archives, tmp_path) -> None:
    from scipy.io import savemat

    root = shutil.copytree(archives[PascalContext], tmp_path / "set")
    for folder, text in (("human_parts", "no annotation of PASCAL-Part"), ("pascal-context/trainval", "no LabelMap")):
        file = next(f for f in sorted((root / folder).glob("*.mat")))
        before = file.read_bytes()
        savemat(file, {"something": np.zeros((2, 2))})
        with pytest.raises(UserError, match=text):
            [e for s in ("train", "validation", "test") for e in every(make(PascalContext, root), s)]
        file.write_bytes(before[:50])
        with pytest.raises(UserError, match="cannot read"):
            [e for s in ("train", "validation", "test") for e in every(make(PascalContext, root), s)]
        file.write_bytes(before)


@pytest.mark.parametrize("classes", [19, 7])
def test_cityscapes(archives, pictures, classes) -> None:
    mixture = make(Cityscapes, archives[Cityscapes], changes={"segmentation": {"num_classes": classes}})
    table = np.array(CATEGORY) if classes == 7 else np.arange(19)
    found = {e.id: e for e in every(mixture, "test")}
    for i, picture in enumerate(pictures[1]):
        city = CITIES["val"][i % 2]
        example = found[f"{city}/{city}_{i:06d}_000019"]
        np.testing.assert_array_equal(pixels(example), picture.image)
        np.testing.assert_array_equal(example.targets["segmentation"], labels(picture, lambda x: table[x]))
        inverse = example.targets["depth"][0]
        np.testing.assert_array_equal(np.isnan(inverse), hole(picture))
        known = ~hole(picture)
        np.testing.assert_allclose(inverse[known], 0.1 / picture.depth[known], atol=1e-5)


def test_cityscapes_in_metres(archives, pictures) -> None:
    example = every(make(Cityscapes, archives[Cityscapes], "depth", depth="metres"), "test")[0]
    known = ~hole(pictures[1][0])
    np.testing.assert_allclose(example.targets["depth"][0][known], 10 * pictures[1][0].depth[known], rtol=2e-3)


def test_cityscapes_has_19_or_7_classes(archives) -> None:
    changes = {"segmentation": {"num_classes": 13}}
    assert "19: the evaluated classes" in make(Cityscapes, archives[Cityscapes], changes=changes).check()[0].hint


@pytest.mark.parametrize("classes", [7, 19])
def test_cityscapes2(archives, pictures, classes) -> None:
    mixture = make(Cityscapes2, archives[Cityscapes2], changes={"segmentation": {"num_classes": classes}})
    for example, picture in zip(every(mixture, "test"), pictures[1], strict=True):
        np.testing.assert_array_equal(pixels(example), picture.image)
        change = (lambda x: x % 7) if classes == 7 else (lambda x: x)
        np.testing.assert_array_equal(example.targets["segmentation"], labels(picture, change))
        known = ~hole(picture)
        np.testing.assert_array_equal(np.isnan(example.targets["depth"][0]), ~known)
        np.testing.assert_allclose(example.targets["depth"][0][known], 0.1 / picture.depth[known], rtol=1e-5)


def test_a_plain_folder_of_labels_will_do(archives, tmp_path) -> None:
    root = shutil.copytree(archives[Cityscapes2], tmp_path / "set")
    for split in ("train", "val"):
        (root / split / "label_7").rename(root / split / "label")
        shutil.rmtree(root / split / "label_19")
    assert make(Cityscapes2, root).check() == []
    assert len(every(make(Cityscapes2, root), "test")) == 2


@pytest.mark.parametrize("kind", [Cityscapes, Cityscapes2])
def test_inverse_depth_grows_with_the_zoom(kind, archives) -> None:
    """An object twice as large is half as far away: its inverse depth is twice as large."""
    keys = {"augment": {"scale": [2.0]}, "fit": "resize"}
    dataset = make(kind, archives[kind], "depth", **keys).datasets("train")[kind.option]
    plain = dataset.example(0, None).targets["depth"]
    zoomed = dataset.example(0, np.random.default_rng(0)).targets["depth"]
    values = plain[~np.isnan(plain)]
    assert np.isin(zoomed[~np.isnan(zoomed)], values * np.float32(2)).all()


@pytest.mark.parametrize("inside", ["", "taskonomy/"])
def test_taskonomy(tmp_path, inside) -> None:
    drawn = rooms(8)
    root = write_taskonomy(tmp_path / "set", drawn, inside)
    mixture = make(Taskonomy, root)
    assert mixture.check() == []
    for split, numbers in (("train", (0, 4, 1, 5)), ("validation", (2, 6)), ("test", (3, 7))):
        found = {e.id.rpartition("/")[2]: e for e in every(mixture, split)}
        assert len(found) == len(numbers)
        for i in numbers:
            example, picture = found[f"point_{i}_view_{i % 3}"], drawn[i]
            np.testing.assert_array_equal(example.targets["segmentation"], labels(picture))
            known = ~hole(picture)
            np.testing.assert_array_equal(np.isnan(example.targets["depth"][0]), ~known)
            np.testing.assert_allclose(example.targets["depth"][0][known], picture.depth[known], atol=1 / 1000)
            assert np.isnan(example.targets["normals"][0][~known]).all()
            np.testing.assert_allclose(example.targets["keypoints"][0], picture.image[..., 0] / 255, atol=1e-6)
            np.testing.assert_allclose(example.targets["edge"][0], picture.edge * (40000 / 65535), atol=1e-6)


def test_mistakes_in_the_list_of_buildings(archives) -> None:
    buildings = {"train": ["hanson", "merom"], "val": ["merom"], "tset": ["ihlen"]}
    text = "\n".join(map(str, make(Taskonomy, archives[Taskonomy], buildings=buildings).check()))
    assert "did you mean 'test'?" in text
    assert "'mixture.buildings.test' names no building" in text
    assert "merom in two splits" in text


def test_nyuv2_of_the_hub(archives, pictures) -> None:
    mixture = make(NYUv2Hub, archives[NYUv2Hub])
    for example, picture in zip(every(mixture, "test"), pictures[1], strict=True):
        np.testing.assert_array_equal(pixels(example), picture.image)
        np.testing.assert_array_equal(example.targets["segmentation"], labels(picture))
        np.testing.assert_array_equal(example.targets["depth"][0], np.where(hole(picture), np.nan, picture.depth))
        known = ~hole(picture)
        np.testing.assert_allclose(
            example.targets["normals"].transpose(1, 2, 0)[known], picture.normals[known], atol=1e-5
        )


def test_the_hub_is_asked_where_there_is_no_folder(tmp_path, monkeypatch) -> None:
    import datasets

    mixture = make(NYUv2Hub, tmp_path / "nowhere")
    assert "HF_HUB_OFFLINE" in mixture.check()[0].hint
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "tanganke___nyuv2").mkdir()
    assert mixture.check() == []  # offline, but in the cache
    (tmp_path / "tanganke___nyuv2").rmdir()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    assert mixture.check() == []
    asked = []

    def load(*args: Any, **keys: Any) -> Any:
        asked.append((args, keys))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="'tanganke/nyuv2' on the hub: no network"):
        mixture.datasets("test")
    assert asked == [(("tanganke/nyuv2",), {"split": "val"})]
    assert "hub is null" in make(NYUv2Hub, tmp_path / "nowhere", hub=None).check()[0].hint


def test_real_images(runner_data: Path, tmp_path: Path) -> None:
    """Real photographs in every layout, with the labels that they have."""
    found = real(runner_data, tmp_path / "nyuv2")
    size = [120, 160]
    for kind, write in WRITERS.items():
        if kind is Taskonomy:
            root = write_taskonomy(tmp_path / "data" / kind.option, found)
        else:
            root = write(tmp_path / "data" / kind.option, found[:4], found[4:])
        mixture = make(kind, root, size=size)
        assert mixture.check() == []
        for example in every(mixture, "test"):
            picture = min(found, key=lambda p: np.abs(p.image - pixels(example)).mean())
            np.testing.assert_array_equal(example.targets["segmentation"] < 0, hole(picture))
            if "edge" in example.targets and kind is PascalContext:
                assert 0.01 < example.targets["edge"].mean() < 0.3
            if "normals" in example.targets:
                lengths = np.linalg.norm(example.targets["normals"], axis=0)
                np.testing.assert_allclose(lengths[~np.isnan(lengths)], 1, atol=1e-4)


def test_images_of_a_damaged_archive(archives, tmp_path) -> None:
    root = shutil.copytree(archives[Cityscapes], tmp_path / "set")
    file = next((root / "gtFine/val").glob("*/*.png"))
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(file)
    with pytest.raises(UserError, match="is no map of label ids"):
        every(make(Cityscapes, root), "test")
