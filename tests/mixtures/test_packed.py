from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from runner.errors import UserError
from runner.mixtures import packed
from runner.mixtures.nyud import NYUD
from runner.mixtures.nyuv2 import NYUv2
from tests.mixtures.miniature import SIZE, tasks, write_nyud_mt, write_nyuv2

MAPS = {"nyud": ("segmentation", "depth", "normals", "edge"), "nyuv2": ("segmentation", "depth", "normals")}
MADE = {"nyud": (NYUD, write_nyud_mt), "nyuv2": (NYUv2, write_nyuv2)}
AUGMENT = {"scale": [0.5, 2.0], "between": True, "crop": [40, 52], "max_share": 0.75, "flip": True, "colour": True}


def mixture(option: str, root: Path, names: tuple[str, ...] = (), **keys):
    kind = MADE[option][0]
    keys = {"path": root.name, "size": list(SIZE), "partial": True, "augment": AUGMENT, "validation": 2} | keys
    return kind(str(root.parent), tasks=tasks(*(names or MAPS[option])), **keys)


def write(option: str, root: Path) -> Path:
    made = mixture(option, root)
    listed = sorted(set(made.listed.values()))
    told = []
    packed.pack(root, {s: made.source(root, s, MAPS[option]) for s in listed}, MAPS[option], lambda *a: told.append(a))
    assert told[-1] == ("val", 3, 3)
    return root


@pytest.fixture(scope="module", params=MADE)
def both(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """An archive of which one map is missing, as it was and packed, with nothing but the packed form left."""
    option = request.param
    plain = MADE[option][1](tmp_path_factory.mktemp("plain") / "set")
    (plain / ("depth/0002.npy" if option == "nyud" else "train/depth/2.npy")).unlink()
    copy = write(option, shutil.copytree(plain, tmp_path_factory.mktemp("copy") / "set"))
    for path in copy.iterdir():
        if path.name != packed.FOLDER:
            shutil.rmtree(path)
    return option, plain, copy


def test_examples_are_the_same_to_the_last_bit(both) -> None:
    option, plain, copy = both
    assert mixture(option, copy).check() == []
    for split in ("train", "validation", "test"):
        first, second = (mixture(option, root).datasets(split)[option] for root in (plain, copy))
        assert isinstance(second.source, packed.PackedSource)
        second = pickle.loads(pickle.dumps(second))  # noqa: S301
        assert len(first) == len(second)
        for i in range(len(first)):
            for rng in (None, 5):
                a, b = (d.example(i, None if rng is None else np.random.default_rng(rng)) for d in (first, second))
                assert (a.id, a.targets.keys()) == (b.id, b.targets.keys())
                np.testing.assert_array_equal(a.inputs["pixels"], b.inputs["pixels"])
                for task, target in a.targets.items():
                    np.testing.assert_array_equal(target, b.targets[task])


def test_a_map_that_was_not_packed_is_read_from_the_archive(tmp_path) -> None:
    root = write_nyud_mt(tmp_path / "set")
    made = mixture("nyud", root)
    packed.pack(root, {s: made.source(root, s, ["depth"]) for s in ("train", "val")}, ["depth"], lambda *_: None)
    assert isinstance(
        mixture("nyud", root, ("depth",), augment=None).datasets("test")["nyud"].source, packed.PackedSource
    )
    both = mixture("nyud", root, ("depth", "edge"), augment=None).datasets("test")["nyud"]
    assert not isinstance(both.source, packed.PackedSource)
    assert set(both.example(0, None).targets) == {"depth", "edge"}
    shutil.rmtree(root / "edge")
    assert "no folder 'edge'" in mixture("nyud", root, ("depth", "edge"), augment=None).check()[0].what


def test_a_failed_packing_leaves_the_old_one(tmp_path) -> None:
    root = write("nyud", write_nyud_mt(tmp_path / "set"))
    before = (root / packed.MARKER).stat().st_mtime_ns
    (root / "images/0001.png").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read"):
        write("nyud", root)
    assert (root / packed.MARKER).stat().st_mtime_ns == before
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"version": 99, "splits": {}})])
def test_an_index_that_cannot_be_read(tmp_path, text) -> None:
    root = write("nyuv2", write_nyuv2(tmp_path / "set"))
    (root / packed.MARKER).write_text(text)
    (problem,) = mixture("nyuv2", root).check()
    assert "index.json" in problem.what
    assert "runner data prepare" in problem.hint


def test_a_file_that_was_cut_short(tmp_path) -> None:
    root = write("nyuv2", write_nyuv2(tmp_path / "set"))
    path = root / packed.FOLDER / "val/depth.bin"
    path.write_bytes(path.read_bytes()[:-400])
    dataset = mixture("nyuv2", root).datasets("test")["nyuv2"]
    dataset.example(0, None)
    with pytest.raises(UserError, match=r"depth\.bin ends before record 2"):
        dataset.example(2, None)


def test_labels_that_are_no_classes_are_not_folded_into_16_bits() -> None:
    assert packed.compact(np.array([[-1.0, 12.0]]), "classes").dtype == np.int16
    with pytest.raises(UserError, match="70000"):
        packed.compact(np.array([[70000.0]]), "classes")
