from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.errors import UserError
from runner.mixtures.celeba import ATTRIBUTES, CelebA
from tests.mixtures.archives import celeba_face, celeba_labels, write_celeba

BINARY = {"_target_": "runner.tasks.binary.Binary"}
SOME = ("smiling", "5_o_clock_shadow", "young")


def make(root: Path, *names: str, **keys) -> CelebA:
    tasks = {name: dict(BINARY) for name in names or SOME}
    return CelebA(str(root.parent), tasks=tasks, **({"path": root.name, "size": [64, 64]} | keys))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_celeba(tmp_path_factory.mktemp("data") / "celeba", 12)


def examples(mixture: CelebA, split) -> list:
    dataset = mixture.datasets(split)["celeba"]
    return [dataset.example(i, None) for i in range(len(dataset))]


@pytest.mark.parametrize("flat", [False, True])
def test_both_layouts(tmp_path, flat) -> None:
    root = write_celeba(tmp_path / "celeba", 12, flat=flat)
    mixture = make(root)
    assert mixture.check() == []
    assert mixture.setup(None).size == (64, 64)
    found = {e.id: e for split in ("train", "validation", "test") for e in examples(mixture, split)}
    assert len(found) == 12
    labels = celeba_labels(12)
    for i, (name, example) in enumerate(sorted(found.items())):
        assert name == f"{i + 1:06d}.jpg"
        for task in SOME:
            assert example.targets[task] == labels[i, ATTRIBUTES.index(task)]
            assert example.targets[task].dtype == np.float32
        with Image.open(root / ("" if flat else "Img") / "img_align_celeba" / name) as image:
            expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(np.rint(example.inputs["pixels"].transpose(1, 2, 0) * 255), expected)
        assert np.abs(expected.mean((0, 1)) - celeba_face(i).mean((0, 1))).max() < 8


def test_the_published_splits(root) -> None:
    assert [len(examples(make(root), s)) for s in ("train", "validation", "test")] == [8, 2, 2]
    assert [e.id for e in examples(make(root), "test")] == ["000011.jpg", "000012.jpg"]


def test_flipping(root) -> None:
    dataset = make(root, flip=True).datasets("train")["celeba"]
    plain = dataset.example(0, None).inputs["pixels"]
    seen = {tuple(dataset.example(0, np.random.default_rng(s)).inputs["pixels"][0, 0]) for s in range(8)}
    assert seen == {tuple(plain[0, 0]), tuple(plain[0, 0, ::-1])}


def test_decoded_faces_are_the_same(root, tmp_path) -> None:
    copy = shutil.copytree(root, tmp_path / "celeba")
    mixture = make(copy)
    faces = mixture.datasets("train")["celeba"]._faces
    mixture.decoded.parent.mkdir()
    np.save(mixture.decoded, np.stack([faces[i] for i in range(12)]))
    shutil.rmtree(copy / "Img")
    again = make(copy)
    assert again.check() == []
    dataset = pickle.loads(pickle.dumps(again.datasets("test")["celeba"]))  # noqa: S301
    for i, example in enumerate(examples(make(root), "test")):
        np.testing.assert_array_equal(dataset.example(i, None).inputs["pixels"], example.inputs["pixels"])
    (problem,) = make(copy, size=[32, 32]).check()  # of another size there is nothing
    assert "lacks Img/img_align_celeba or img_align_celeba" in problem.what
    np.save(mixture.decoded, np.zeros((12, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="and not bytes"):
        examples(make(copy), "test")


def test_what_is_missing_is_one_error(root, tmp_path) -> None:
    (problem,) = make(tmp_path / "nowhere").check()
    assert "mmlab.ie.cuhk.edu.hk" in problem.hint
    copy = shutil.copytree(root, tmp_path / "celeba")
    shutil.rmtree(copy / "Img")
    shutil.rmtree(copy / "Eval")
    (problem,) = make(copy).check()
    assert "list_eval_partition.txt" in problem.what and "img_align_celeba" in problem.what


def test_mistakes_in_tasks(root) -> None:
    assert "did you mean 'smiling'?" in make(root, "smilling").check()[0].hint


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("Anno/list_attr_celeba.txt", lambda t: t.replace("Smiling", "Laughing"), "does not name CelebA's 40"),
        ("Anno/list_attr_celeba.txt", lambda t: t[:-20], "is cut short"),
        ("Eval/list_eval_partition.txt", lambda t: t[:40], "images are not in"),
        ("Img/img_align_celeba/000012.jpg", lambda t: "", "cannot read"),
    ],
)
def test_damaged_files(root, tmp_path, file, change, message) -> None:
    copy = shutil.copytree(root, tmp_path / "celeba")
    path = copy / file
    path.write_text(change(path.read_text(encoding="latin-1")), encoding="latin-1")
    with pytest.raises(UserError, match=message):
        examples(make(copy), "test")


def test_faces_are_remembered_up_to_a_size(root) -> None:
    dataset = make(root, cache_mb=0).datasets("train")["celeba"]
    dataset.example(0, None)
    assert dataset._faces._cache == {}
    dataset = make(root).datasets("train")["celeba"]
    dataset.example(0, None)
    assert list(dataset._faces._cache) == [0]
    assert pickle.loads(pickle.dumps(dataset))._faces._cache == {}  # noqa: S301
