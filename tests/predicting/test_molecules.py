"""Molecules of one's own: QM9's files say what its mixture says, and others are read or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.config.build import build
from runner.launching.rundir import RunDirectory
from runner.mixtures.molecules import TARGETS
from runner.mixtures.qm9 import QM9
from runner.predicting import worker
from runner.predicting.molecules import MoleculeReader
from runner.predicting.request import Request
from tests.mixtures.molecules import write_sdf, write_xyz
from tests.predicting.runs import hide_data, predict, result, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    place = tmp_path_factory.mktemp("molecules")
    write_sdf(place / "qm9", 24)
    mixture = {"path": "qm9", "validation": 5, "test": 5}
    return trained(place, "qm9", mixture, "backbone=mpnn", "backbone.size=tiny", "tasks=[mu,cv]")


def read(path: Path, mixture: QM9) -> list:
    reader = MoleculeReader(mixture, ["mu"], Request(run="", file=str(path)), (1, 6, 7, 8, 9))
    items = list(reader.items())
    reader.prepare(items)
    return items


def test_predictions_of_the_test_split_are_those_of_the_evaluation(run, tmp_path) -> None:
    config = run.config()
    place = Path(config["data_root"]) / "qm9"
    mixture = build(config["mixture"], config["data_root"])
    chosen = mixture.datasets("test")["qm9"]._numbers
    everything = mixture.molecules
    blocks = (place / "gdb9.sdf").read_text().split("$$$$\n")
    ids = [int(everything.ids[n]) for n in chosen]
    (tmp_path / "test.sdf").write_text("".join(blocks[i - 1] + "$$$$\n" for i in ids))
    hide_data(run, tmp_path)
    found = predict(run, tmp_path, file=str(tmp_path / "test.sdf"))
    assert [r["name"] for r in found] == [f"gdb_{i}" for i in ids]
    for task in ("mu", "cv"):
        truth = everything.targets[chosen, TARGETS.index(task)]
        errors = [abs(float(r[task]) - t) for r, t in zip(found, truth, strict=True)]
        assert np.mean(errors) == pytest.approx(result(run, task)["mae"], rel=1e-6)


def test_a_file_is_read_as_the_mixture_reads_it(tmp_path) -> None:
    write_sdf(tmp_path / "qm9", 12)
    keys = {"path": "qm9", "tasks": {}, "validation": 2, "test": 2}
    mixture = build({"_target_": "runner.mixtures.qm9.QM9"} | keys, str(tmp_path))
    known = {int(i): mixture.molecules.graph(n) for n, i in enumerate(mixture.molecules.ids)}
    for i, item in enumerate(read(tmp_path / "qm9" / "gdb9.sdf", mixture), start=1):
        for key, expected in known.get(i, {}).items():
            np.testing.assert_array_equal(item.examples["molecule"].inputs[key], expected)
    write_xyz(tmp_path / "xyz", 12, tar=False)
    files = sorted((tmp_path / "xyz" / "dsgdb9nsd.xyz").iterdir())
    (tmp_path / "all.xyz").write_text("".join(file.read_text() for file in files))
    joined = read(tmp_path / "all.xyz", mixture)
    assert [item.cells["name"] for item in joined] == [f"gdb {i}" for i in range(1, 13)]
    for i, (item, file) in enumerate(zip(joined, files, strict=True), start=1):
        (alone,) = read(file, mixture)
        for found in (item, alone):
            inputs = found.examples["molecule"].inputs
            assert not inputs["bonds"].any()
            if i in known:
                np.testing.assert_array_equal(inputs["atoms"], known[i]["atoms"])
                np.testing.assert_allclose(inputs["positions"], known[i]["positions"], atol=1e-4)


def test_molecules_that_cannot_be_read_keep_their_place(run, tmp_path, capsys) -> None:
    water = "3\nwater\nO 0 0 0.1\nH 0.7 0 -0.4\nH -0.7 0 -0.4\n"
    bad = "2\nsalt\nNa 0 0 0\nCl 2.3 0 0\n2\nwords\nC a b c\nC 0 0 1\n3\nshort\nC 0 0 0\n"
    (tmp_path / "a.xyz").write_text(water + "\n" + bad)
    found = predict(run, tmp_path / "out", expect=1, file=str(tmp_path / "a.xyz"))
    assert [r["name"] for r in found] == ["water", "salt", "words", "short"]
    assert [bool(r["mu"]) for r in found] == [True, False, False, False]
    said = capsys.readouterr().err
    assert "molecule 2: it has Cl, Na, and training had H, C, N, O, F alone" in said
    assert "molecule 3: its positions are not numbers" in said
    assert "molecule 4: it has 1 atoms, and its first line says 3" in said
    assert "an .xyz file has no bonds, and the model was trained with them" in said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a\n\n\n  9  0  0\n", "those that its fourth line counts"),
        ("a\n\n\nxx\n", "not a molecule in the V2000 form"),
        ("a\n\n\n  0  0  0     0  0            999 V3000\n", "V3000"),
        ("a\n\n\n  1  1  0\n 0 0 0 C\n  1  4  1\n", "those that its fourth line counts"),
        ("a\n\n\n  2  1  0\n 0 0 0 C\n 1 0 0 C\n  1  2  8\n", "bonds of a kind other"),
    ],
)
def test_damaged_sdf(run, tmp_path, capsys, content, why) -> None:
    (tmp_path / "a.sdf").write_text(content)
    request = Request(run=str(run.path), file=str(tmp_path / "a.sdf"), to=str(tmp_path / "out"), device="cpu")
    assert worker.main(request) == 1
    assert why in capsys.readouterr().err


def test_other_files_are_refused(run, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_text("smiles\nCCO\n")
    assert worker.main(Request(run=str(run.path), file=str(tmp_path / "a.csv"), to=str(tmp_path))) == 2
    assert "holds no molecules" in capsys.readouterr().err
    (tmp_path / "b.xyz").write_text("hello\n")
    assert worker.main(Request(run=str(run.path), file=str(tmp_path / "b.xyz"), to=str(tmp_path), device="cpu")) == 1
    assert "is not the number of its atoms" in capsys.readouterr().err
