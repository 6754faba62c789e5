from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures.multimnist import MultiMNIST, overlay
from tests.mixtures.made import classes, problems, write_images

TASKS = {"left": classes(10), "right": classes(10)}
SOURCES = {"mnist": {"path": "mnist", "labels": {"left": "label", "right": "label"}}}


def digit(number: int) -> np.ndarray:
    """A picture that says which row it is."""
    return np.random.default_rng(number).integers(1, 255, (28, 28)).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("data")
    for split, first, count in (("train", 0, 20), ("test", 100, 12)):
        numbers = range(first, first + count)
        write_images(place / "mnist" / f"{split}.parquet", [digit(n) for n in numbers], label=[n % 10 for n in numbers])
    return place


def make(root: Path, tasks=TASKS, sources=SOURCES, **keys) -> MultiMNIST:
    return MultiMNIST(str(root), tasks=tasks, sources=sources, **({"size": [28, 28], "validation": 5} | keys))


def examples(mixture: MultiMNIST, split) -> list:
    dataset = mixture.datasets(split)["mnist"]
    return [dataset.example(i, None) for i in range(len(dataset))]


def rows(example) -> tuple[int, int]:
    left, right = example.id.rpartition("/")[2].split("+")
    return int(left), int(right)


def test_the_published_overlay_and_labels(root) -> None:
    """Drawn again as the published recipe writes it, with Pillow's nearest pixels."""
    for example in examples(make(root), "test"):
        left, right = (100 + n for n in rows(example))
        canvas = np.zeros((36, 36), np.uint8)
        canvas[0:28, 0:28] = digit(left)
        canvas[6:34, 6:34] = digit(right)
        canvas[6:28, 6:28] = np.maximum(digit(left)[6:28, 6:28], digit(right)[0:22, 0:22])
        expected = np.asarray(Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST))
        for channel in example.inputs["pixels"]:
            np.testing.assert_array_equal(np.rint(channel * 255), expected)
        assert (example.targets["left"], example.targets["right"]) == (left % 10, right % 10)


def test_every_digit_is_a_left_one_once_and_pairs_stay_in_their_split(root) -> None:
    pairs = {split: [rows(e) for e in examples(make(root), split)] for split in ("train", "validation", "test")}
    lefts = {split: sorted(left for left, _ in found) for split, found in pairs.items()}
    assert sorted(lefts["train"] + lefts["validation"]) == list(range(20))
    assert len(lefts["validation"]) == 5
    assert lefts["test"] == list(range(12))
    for split, found in pairs.items():
        assert {right for _, right in found} <= set(lefts[split])
    assert len({right for _, right in pairs["train"]}) > 1


def test_the_seed_decides_about_pairs(root) -> None:
    first, again, other = ([rows(e) for e in examples(make(root, pair_seed=s), "test")] for s in (0, 0, 1))
    assert first == again != other
    assert [left for left, _ in first] == [left for left, _ in other]


def test_the_whole_canvas(root) -> None:
    (example, *_) = examples(make(root, size=[36, 36]), "test")
    left, right = (digit(100 + n) for n in rows(example))
    np.testing.assert_array_equal(np.rint(example.inputs["pixels"][0] * 255), overlay(left, right, (36, 36)))
    assert (overlay(left, right, (36, 36))[:6, :28] == left[:6]).all()
    assert (overlay(left, right, (36, 36))[28:34, 6:34] == right[22:]).all()


def test_one_task_alone_sees_the_same_images(root) -> None:
    both, alone = examples(make(root), "train"), examples(make(root, {"right": classes(10)}), "train")
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_array_equal(a.inputs["pixels"], b.inputs["pixels"])
        assert set(b.targets) == {"right"}


def test_mistakes(root, tmp_path) -> None:
    text = "\n".join(map(str, make(root, TASKS | {"middle": classes(10)}, size=[28]).check()))
    assert "no task 'middle'" in text
    assert "[height, width]" in text
    two = SOURCES | {"more": {"path": "mnist", "labels": {"left": "label"}}}
    assert "takes both digits from one data set" in "\n".join(map(str, make(root, sources=two).check()))
    write_images(tmp_path / "mnist/train.parquet", [np.zeros((32, 32), np.uint8)] * 20, label=[1] * 20)
    write_images(tmp_path / "mnist/test.parquet", [np.zeros((32, 32), np.uint8)] * 4, label=[1] * 4)
    with pytest.raises(UserError, match="32 x 32 pixels") as caught:
        examples(make(tmp_path), "test")
    assert "28 x 28" in problems(caught.value)


def test_real_digits(runner_data: Path) -> None:
    sources = {"mnist": {"path": "hub/mnist", "labels": {"left": "label", "right": "label"}}}
    mixture = make(runner_data, sources=sources, validation=0.1)
    assert mixture.check() == []
    train = mixture.datasets("train")["mnist"]
    assert len(train) == 9000
    labels = np.array([[train.example(i, None).targets[t] for t in ("left", "right")] for i in range(300)])
    assert set(labels.ravel()) == set(range(10))
    assert 0.04 < (labels[:, 0] == labels[:, 1]).mean() < 0.2  # one in ten by chance
