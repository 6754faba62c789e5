"""Images from parquet, folders, tables of paths and the hub, against Pillow and pandas."""

from __future__ import annotations

import io
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from runner.config.build import build
from runner.errors import UserError
from runner.mixtures import rows as rows_module
from runner.mixtures.images import Images, augment, resize, to_rgb
from runner.mixtures.stream import augmentation_rng, eval_batches
from runner.specs import InputSpec
from tests.mixtures.made import BINARY, REGRESSION, classes, png, problems, write_images

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(12)]


def images(data_root, sources, tasks, size=(8, 8), **keys):
    config = {
        "_target_": "runner.mixtures.images.Images",
        "sources": sources,
        "tasks": tasks,
        "size": list(size),
        **keys,
    }
    return build(config, str(data_root), where="mixture")


def opened(data_root, sources, tasks, **keys):
    mixture = images(data_root, sources, tasks, **keys)
    assert mixture.check() == []
    mixture.setup(None)
    return mixture


@pytest.fixture
def two(tmp_path):
    """Two data sets, of which one has a validation split and one has not."""
    write_images(tmp_path / "a" / "train.parquet", PICTURES[:10], label=[i % 3 for i in range(10)])
    write_images(tmp_path / "a" / "test.parquet", PICTURES[10:], label=[0, 2])
    write_images(tmp_path / "b" / "train.parquet", PICTURES[:6], label=[i % 2 for i in range(6)])
    write_images(tmp_path / "b" / "validation.parquet", PICTURES[6:9], label=[0, 1, 0])
    write_images(tmp_path / "b" / "test.parquet", PICTURES[9:], label=[1, 1, 0])
    sources = {"a": {"path": "a", "labels": {"a": "label"}}, "b": {"path": "b", "labels": {"b": "label"}, "flip": True}}
    return tmp_path, sources, {"a": classes(3), "b": classes(2)}


def test_pixels_labels_and_ids(two):
    mixture = opened(*two)
    assert mixture.setup(None) == InputSpec("image", size=(8, 8))
    for split, start in (("test", 9), ("validation", 6)):
        dataset = mixture.datasets(split)["b"]
        assert (dataset.name, dataset.tasks, len(dataset)) == ("b", ("b",), 3)
        for i in range(3):
            example = dataset.example(i, None)
            np.testing.assert_array_equal(
                example.inputs["pixels"], PICTURES[start + i].transpose(2, 0, 1) / np.float32(255)
            )
            assert example.inputs["pixels"].dtype == np.float32
            assert example.inputs["pixels"].flags.c_contiguous
            assert example.targets["b"].dtype == np.int64
            assert example.id == f"b/{split}/{i}"
    assert [int(mixture.datasets("test")["b"].example(i, None).targets["b"]) for i in range(3)] == [1, 1, 0]


def test_validation_is_carved_from_train_and_only_where_there_is_none(two):
    mixture = opened(*two, validation=3)
    train, validation, test = (mixture.datasets(s)["a"] for s in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (7, 3, 2)
    ids = [d.example(i, None).id for d in (train, validation) for i in range(len(d))]
    assert sorted(ids) == sorted(f"a/train/{i}" for i in range(10))
    assert [len(mixture.datasets(s)["b"]) for s in ("train", "validation", "test")] == [6, 3, 3]
    again = opened(*two, validation=3).datasets("validation")["a"]
    assert again.numbers.tolist() == validation.numbers.tolist()
    others = [
        opened(*two, validation=3, split_seed=s).datasets("validation")["a"].numbers.tolist() for s in range(1, 6)
    ]
    assert any(other != validation.numbers.tolist() for other in others)


def test_test_is_carved_where_the_config_says_so(tmp_path):
    write_images(tmp_path / "a" / "train.parquet", PICTURES, label=[0, 1] * 6)
    source = {"path": "a", "labels": {"a": "label"}}
    (problem,) = images(tmp_path, {"a": source}, {"a": classes(2)}).check()
    assert "data set 'a' has no test split" in problem.what
    assert "mixture.sources.a.test=0.2" in problem.hint
    parts = {}
    for validation in (2, 4):
        mixture = opened(tmp_path, {"a": source | {"test": 0.25}}, {"a": classes(2)}, validation=validation)
        parts[validation] = {s: mixture.datasets(s)["a"].numbers.tolist() for s in ("train", "validation", "test")}
        assert sorted(i for part in parts[validation].values() for i in part) == list(range(12))
        assert [len(parts[validation][s]) for s in ("train", "validation", "test")] == [9 - validation, validation, 3]
    assert parts[2]["test"] == parts[4]["test"], "another validation share must not move the test set"


def test_a_published_validation_split_can_serve_as_test(tmp_path):
    write_images(tmp_path / "a" / "train.parquet", PICTURES[:9], label=[0] * 9)
    write_images(tmp_path / "a" / "validation.parquet", PICTURES[9:], label=[1] * 3)
    source = {"path": "a", "labels": {"a": "label"}, "splits": {"validation": None, "test": "validation"}}
    mixture = opened(tmp_path, {"a": source}, {"a": classes(2)}, validation=2)
    assert [len(mixture.datasets(s)["a"]) for s in ("train", "validation", "test")] == [7, 2, 3]
    assert int(mixture.datasets("test")["a"].example(0, None).targets["a"]) == 1


def test_tasks_that_are_left_out_take_their_data_sets_along(two):
    data_root, sources, tasks = two
    mixture = opened(data_root, sources, {"b": tasks["b"]})
    assert list(mixture.datasets("train")) == ["b"]
    sources["a"]["path"] = "nowhere"
    assert images(data_root, sources, {"b": tasks["b"]}).check() == []


def test_two_tasks_on_one_image_and_labels_that_are_missing(tmp_path):
    columns = {"kind": [0, None, 2, 1], "round": [1, 0, None, 1], "size": [0.5, float("nan"), 2.0, None]}
    for split in ("train", "test"):
        write_images(tmp_path / "a" / f"{split}.parquet", PICTURES[:4], **columns)
    tasks = {"kind": classes(3), "round": {"_target_": BINARY}, "size": {"_target_": REGRESSION}}
    source = {"path": "a", "labels": {task: task for task in tasks}}
    dataset = opened(tmp_path, {"a": source}, tasks).datasets("test")["a"]
    found = [{k: v.item() for k, v in dataset.example(i, None).targets.items()} for i in range(4)]
    assert found == [
        {"kind": 0, "round": 1.0, "size": 0.5},
        {"round": 0.0},
        {"kind": 2, "size": 2.0},
        {"kind": 1, "round": 1.0},
    ]
    (group,) = eval_batches(dataset, batch_size=4)
    assert group.targets["kind"].tolist() == [0, -100, 2, 1]
    assert group.targets["round"].isnan().tolist() == [False, False, True, False]


# ---- layouts ------------------------------------------------------------------------------------------------------


def test_folders_of_classes(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for kind, name in enumerate(("cat", "dog", "emu")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(PICTURES[kind * 4 + i]).save(folder / f"{i}.png")
            (folder / "notes.txt").write_text("not an image")
    source = {"path": "pets", "labels": {"pet": "label"}}
    dataset = opened(tmp_path, {"pets": source}, {"pet": classes(3)}).datasets("test")["pets"]
    assert [int(dataset.example(i, None).targets["pet"]) for i in range(6)] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(dataset.example(5, None).inputs["pixels"] * 255, PICTURES[9].transpose(2, 0, 1))


def test_folders_of_classes_without_splits(tmp_path):
    for kind, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(PICTURES[kind * 6 + i]).save(tmp_path / "pets" / name / f"{i}.jpeg")
    source = {"path": "pets", "labels": {"pet": "label"}, "test": 4}
    mixture = opened(tmp_path, {"pets": source}, {"pet": classes(2)}, validation=2)
    assert [len(mixture.datasets(s)["pets"]) for s in ("train", "validation", "test")] == [6, 2, 4]


def test_a_table_of_paths(tmp_path):
    folder = tmp_path / "birds"
    (folder / "img").mkdir(parents=True)
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / "img" / f"{i}.png")
    for split, part in (("train", range(10)), ("test", range(10, 12))):
        lines = "".join(f"img/{i}.png,{'robin' if i % 2 else 'crow'}\n" for i in part)
        (folder / f"{split}.csv").write_text("file,species\n" + lines)
    source = {
        "path": "birds",
        "image": "file",
        "labels": {"species": {"column": "species", "classes": ["robin", "crow"]}},
    }
    dataset = opened(tmp_path, {"birds": source}, {"species": classes(2)}).datasets("test")["birds"]
    np.testing.assert_array_equal(dataset.example(1, None).inputs["pixels"] * 255, PICTURES[11].transpose(2, 0, 1))
    assert [int(dataset.example(i, None).targets["species"]) for i in range(2)] == [1, 0]


@pytest.mark.parametrize("folder", ["", "data"])
def test_shards_as_the_hub_names_them(tmp_path, folder):
    at = tmp_path / "a" / folder
    write_images(at / "train-00000-of-00002.parquet", PICTURES[:4], label=[0] * 4)
    write_images(at / "train-00001-of-00002.parquet", PICTURES[4:10], label=[1] * 6)
    write_images(at / "test-00000-of-00001.parquet", PICTURES[10:], label=[1, 0])
    write_images(at / "train_extra.parquet", PICTURES[:1], label=[1])
    mixture = opened(tmp_path, {"a": {"path": "a", "labels": {"a": "label"}}}, {"a": classes(2)}, validation=1)
    assert len(mixture.datasets("train")["a"]) + 1 == 10


def test_files_with_other_names(tmp_path):
    write_images(tmp_path / "a" / "part1.parquet", PICTURES[:4], label=[0] * 4)
    write_images(tmp_path / "a" / "part2.parquet", PICTURES[4:10], label=[1] * 6)
    write_images(tmp_path / "a" / "held_out.parquet", PICTURES[10:], label=[1, 0])
    source = {"path": "a", "labels": {"a": "label"}, "files": {"train": ["part*.parquet"], "test": "held_out.parquet"}}
    mixture = opened(tmp_path, {"a": source}, {"a": classes(2)}, validation=1)
    assert [len(mixture.datasets(s)["a"]) for s in ("train", "validation", "test")] == [9, 1, 2]
    source["files"]["test"] = "heldout.parquet"
    (problem,) = images(tmp_path, {"a": source}, {"a": classes(2)}).check()
    assert "no file matches 'heldout.parquet'" in problem.what
    assert "did you mean 'held_out.parquet'" in problem.hint


def test_large_files_are_memory_mapped_through_the_library(two, monkeypatch, tmp_path_factory):
    """Offline, with the copy in the user's cache and nothing written beside the data."""
    import datasets

    data_root, sources, tasks = two
    expected = [opened(*two).datasets("test")["b"].example(i, None) for i in range(3)]
    before = sorted(data_root.rglob("*"))
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(rows_module, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    dataset = opened(data_root, sources, tasks).datasets("test")["b"]
    assert list(cache.rglob("*.arrow"))
    assert sorted(data_root.rglob("*")) == before
    for i, wanted in enumerate(expected):
        found = pickle.loads(pickle.dumps(dataset)).example(i, None)  # noqa: S301
        np.testing.assert_array_equal(found.inputs["pixels"], wanted.inputs["pixels"])
        assert (found.targets, found.id) == (wanted.targets, wanted.id)


def test_a_hub_id_goes_through_the_library(two, monkeypatch):
    import datasets

    data_root, _, _ = two
    asked = []

    def load_dataset(path, name=None, **keys):
        asked.append((path, name, keys))
        files = {s: str(data_root / "b" / f"{s}.parquet") for s in ("train", "validation", "test")}
        return datasets.DatasetDict(
            {s: datasets.Dataset.from_parquet(f, keep_in_memory=True) for s, f in files.items()}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = {"hub": "someone/pictures", "subset": "small", "revision": "v1", "labels": {"b": "label"}}
    mixture = opened("nowhere", {"b": source}, {"b": classes(2)})
    example = mixture.datasets("test")["b"].example(0, None)
    np.testing.assert_array_equal(example.inputs["pixels"], PICTURES[9].transpose(2, 0, 1) / np.float32(255))
    assert asked == [("someone/pictures", "small", {"revision": "v1"})]


def test_a_hub_id_that_cannot_be_read(monkeypatch):
    mixture = images("nowhere", {"b": {"hub": "someone/pictures", "labels": {"b": "label"}}}, {"b": classes(2)})
    assert mixture.check() == []  # which does not wait for a network
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    with pytest.raises(UserError, match="'someone/pictures' cannot be read from the Hugging Face hub"):
        mixture.setup(None)


def _no_network(*_):
    raise OSError("a test must not use the network")


# ---- mistakes -----------------------------------------------------------------------------------------------------


def test_missing_data_says_where_how_and_what_needs_none(two, tmp_path, monkeypatch):
    _, sources, tasks = two
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # ./a would be found
    sources["a"]["hub"] = "someone/a"
    found = images(tmp_path / "elsewhere", sources, tasks).check()
    assert len(found) == 2
    text = "\n".join(map(str, found))
    assert str(tmp_path / "elsewhere" / "a") in text
    assert "mixture.hub=true reads 'someone/a'" in text
    asked = images(tmp_path / "elsewhere", sources, tasks, hub=True)
    (other,) = asked.check()  # the hub is asked in setup
    assert asked.sources["a"].path is None and asked.sources["b"].path == "b" and "data set 'b'" in str(other)
    assert "mixture=rooms needs no files" in text


def test_all_mistakes_of_the_keys_at_once(two):
    data_root, sources, tasks = two
    sources["a"] |= {"flipp": True, "splits": {"dev": "x"}}
    sources["b"] |= {"image": 3}
    sources["c"] = {"labels": {"c": "label"}}
    sources["d"] = {"path": "d"}
    text = problems(UserError(images(data_root, sources, tasks).check()))
    for expected in (
        "unknown key 'mixture.sources.a.flipp'",
        "did you mean 'flip'?",
        "unknown key 'mixture.sources.a.splits.dev'",
        "'mixture.sources.b.image' must be text, not 3",
        "'mixture.sources.c' has neither path nor hub",
        "missing value for 'mixture.sources.d.labels'",
    ):
        assert expected in text


def test_a_task_without_labels(two):
    data_root, sources, tasks = two
    (problem,) = images(data_root, sources, {**tasks, "bb": classes(2)}).check()
    assert "no data set of the mixture has labels for task 'bb'" in problem.what
    assert "did you mean 'b'?" in problem.hint


def test_a_dense_task_does_not_fit(two):
    data_root, sources, _ = two
    dense = {"_target_": "runner.tasks.segmentation.Segmentation", "num_classes": 3}
    (problem,) = images(data_root, {"a": sources["a"]}, {"a": dense}).check()
    assert "needs a label per pixel" in problem.what


def test_split_names_that_are_not_there(two):
    data_root, sources, tasks = two
    sources["b"]["splits"] = {"test": "tests"}
    (problem,) = images(data_root, sources, tasks).check()
    assert "data set 'b' has no split 'tests'" in problem.what
    assert "did you mean 'test'?" in problem.hint


def test_a_folder_without_splits(tmp_path):
    write_images(tmp_path / "a" / "everything.parquet", PICTURES, label=[0] * 12)
    (problem,) = images(tmp_path, {"a": {"path": "a", "labels": {"a": "label"}}}, {"a": classes(2)}).check()
    assert "no file or folder named after a split (it holds everything.parquet)" in problem.what


def test_a_label_outside_the_classes_names_everything(two):
    data_root, sources, tasks = two
    with pytest.raises(UserError) as caught:
        opened(data_root, sources, {**tasks, "a": classes(2)})
    (problem,) = caught.value.problems
    assert "data set 'a', column 'label': 2 in row 2 of 'train' is no label of task 'a'" in problem.what
    assert "the data has 3 classes: set mixture.tasks.a.num_classes=3" in problem.hint


def test_columns_that_are_not_there_or_not_images(two):
    data_root, sources, tasks = two
    for change, expected in (
        ({"labels": {"a": "labels"}}, "has no column 'labels'"),
        ({"image": "img"}, "has no column 'img'"),
        ({"image": "label"}, "column 'label' holds int64, not images"),
    ):
        with pytest.raises(UserError, match=expected):
            opened(data_root, {"a": sources["a"] | change}, {"a": tasks["a"]})


@pytest.mark.parametrize(("broken", "why"), [(b"not an image", "cannot identify"), (b"", "there is none")])
def test_an_image_that_cannot_be_read_is_named(tmp_path, broken, why):
    for split in ("train", "test"):
        write_images(tmp_path / "a" / f"{split}.parquet", [PICTURES[0], broken, PICTURES[1]], label=[0, 1, 0])
    dataset = opened(tmp_path, {"a": {"path": "a", "labels": {"a": "label"}}}, {"a": classes(2)}).datasets("test")["a"]
    with pytest.raises(UserError) as caught:
        list(eval_batches(dataset, batch_size=2))
    assert "data set 'a', example 1: the image of a/test/1 cannot be read" in caught.value.problems[0].what
    assert why in caught.value.problems[0].what


def test_a_row_without_an_image_is_named_before_the_training(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "a" / f"{split}.parquet", [PICTURES[0], None, PICTURES[1]], label=[0, 1, 0])
    with pytest.raises(UserError, match="1 of 3 images of 'train' are not there, such as the one of row 1"):
        opened(tmp_path, {"a": {"path": "a", "labels": {"a": "label"}}}, {"a": classes(2)})


@pytest.mark.parametrize("validation", [0, 10, 12, 1.5])
def test_a_share_that_leaves_nothing(two, validation):
    data_root, sources, tasks = two
    mixture = images(data_root, {"a": sources["a"]}, {"a": tasks["a"]}, validation=validation)
    with pytest.raises(UserError, match=f"data set 'a': validation={validation} of 10 examples leaves nothing"):
        mixture.setup(None)


def test_a_size_that_is_none(two):
    assert "'mixture.size' must be [height, width]" in images(*two, size=[8]).check()[0].what


# ---- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_augmentation_is_one_of_all_shifts_and_mirrors(flip, padding):
    picture = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
    windows = [padded[y : y + 6, x : x + 7] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    allowed = {w.tobytes() for w in windows} | ({w[:, ::-1].tobytes() for w in windows} if flip else set())
    seen = {augment(picture, augmentation_rng(0, "d", 0, i), padding, flip).tobytes() for i in range(2000)}
    assert seen == allowed


def test_augmentation_depends_on_its_generator_only(two):
    dataset = opened(*two, crop_padding=2).datasets("train")["b"]
    first = dataset.example(3, np.random.default_rng(5)).inputs["pixels"]
    dataset.example(3, np.random.default_rng(6))
    np.testing.assert_array_equal(dataset.example(3, np.random.default_rng(5)).inputs["pixels"], first)
    plain = dataset.example(3, None).inputs["pixels"]
    np.testing.assert_array_equal(plain, PICTURES[3].transpose(2, 0, 1) / np.float32(255))


def test_flip_is_for_those_that_say_so(two):
    mixture = opened(*two, crop_padding=0)
    for name, count in (("a", 1), ("b", 2)):
        dataset = mixture.datasets("train")[name]
        seen = {dataset.example(0, np.random.default_rng(i)).inputs["pixels"].tobytes() for i in range(20)}
        assert len(seen) == count


def test_resizing_is_that_of_pillow():
    image = Image.fromarray(RNG.integers(0, 256, (20, 10, 3), dtype=np.uint8))
    stretched = resize(image, (6, 9), "resize")
    np.testing.assert_array_equal(np.asarray(stretched), np.asarray(image.resize((9, 6), Image.Resampling.BILINEAR)))
    cropped = resize(image, (4, 4), "crop")
    whole = np.asarray(image.resize((4, 8), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(np.asarray(cropped).astype(int), whole[2:6], atol=1)


def test_every_kind_of_image_becomes_rgb():
    grey = RNG.integers(0, 256, (5, 5), dtype=np.uint8)
    for mode in ("L", "P", "1", "LA", "RGBA", "I", "CMYK"):
        image = Image.fromarray(grey).convert(mode)
        assert to_rgb(image).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    deep = Image.open(io.BytesIO(png(grey.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(np.asarray(to_rgb(deep))[..., 0], grey)


def test_transparent_parts_become_white():
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 1] = (10, 20, 30, 255)
    assert np.asarray(to_rgb(Image.fromarray(pixels))).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_photographs_stand_upright():
    pixels = np.zeros((2, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image = Image.open(io.BytesIO(png(pixels, kind="JPEG", exif=exif)))
    assert image.size == (6, 2)
    assert to_rgb(image).size == (2, 6)


# ---- processes and memory -----------------------------------------------------------------------------------------


def test_the_cache_is_bounded_gives_the_same_and_stays_at_home(two):
    kept, without = (opened(*two, cache_mb=mb).datasets("test")["b"] for mb in (1, 0))
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(
                kept.example(i, None).inputs["pixels"], without.example(i, None).inputs["pixels"]
            )
    assert (len(kept._cache), len(without._cache)) == (3, 0)
    assert pickle.loads(pickle.dumps(kept))._cache == {}  # noqa: S301
    kept._room, kept._cache = 2, {}
    for i in range(3):
        kept.example(i, None)
    assert len(kept._cache) == 2


def test_a_worker_needs_neither_torch_nor_arrow(two, tmp_path):
    (tmp_path / "set.pickle").write_bytes(pickle.dumps(opened(*two).datasets("train")["b"]))
    code = (
        "import pickle, sys\n"
        "import numpy as np\n"
        "dataset = pickle.load(open('set.pickle', 'rb'))\n"
        "dataset.example(0, np.random.default_rng(0))\n"
        "print(sorted({'torch', 'pyarrow', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checking_and_opening_local_data_imports_no_torch_and_no_datasets(two):
    data_root, sources, tasks = two
    code = (
        "import sys\n"
        "from runner.mixtures.images import Images\n"
        f"mixture = Images({str(data_root)!r}, sources={sources!r}, tasks={tasks!r}, size=[8, 8])\n"
        "assert mixture.check() == []\n"
        "assert not {'torch', 'pyarrow', 'datasets'} & set(sys.modules)\n"
        "mixture.setup(None)\n"
        "mixture.datasets('train')['a'].example(0, None)\n"
        "assert not {'torch', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_see_the_same(two):
    dataset = opened(*two).datasets("test")["b"]
    here, there = (list(eval_batches(dataset, batch_size=2, num_workers=n)) for n in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert a.ids == b.ids
        assert (a.inputs["pixels"] == b.inputs["pixels"]).all()


# ---- real data ----------------------------------------------------------------------------------------------------


def test_the_shipped_mixture_reads_what_pandas_reads(runner_data, root):
    import pandas as pd
    import yaml

    config = yaml.safe_load((root / "configs" / "mixture" / "images.yaml").read_text())
    config.pop("defaults")
    config["tasks"] = {name: {**classes(10), **task} for name, task in config["tasks"].items()}
    mixture = build(config, str(runner_data))
    assert isinstance(mixture, Images)
    assert mixture.check() == []
    mixture.setup(None)
    parts = {split: mixture.datasets(split) for split in ("train", "validation", "test")}
    assert len(parts["train"]) == 6
    for name in parts["train"]:
        frames = {s: pd.read_parquet(runner_data / "hub" / name / f"{s}.parquet") for s in ("train", "test")}
        assert len(parts["train"][name]) + len(parts["validation"][name]) == len(frames["train"])
        assert len(parts["test"][name]) == len(frames["test"])
        for split, dataset in ((s, parts[s][name]) for s in parts):
            frame = frames["test" if split == "test" else "train"]
            labels = frame["label"].to_numpy()[dataset.numbers]
            np.testing.assert_array_equal(dataset._targets[name][dataset.numbers], labels)
            for i in np.random.default_rng(1).integers(0, len(dataset), 20):
                example = dataset.example(int(i), None)
                image = Image.open(io.BytesIO(frame["image"].iloc[dataset.numbers[i]]["bytes"])).convert("RGB")
                expected = (
                    np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255
                )
                np.testing.assert_allclose(example.inputs["pixels"], expected, atol=1e-6)
                assert int(example.targets[name]) == labels[i]
