from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from runner.errors import UserError
from runner.mixtures import molecules
from runner.mixtures.collate import collate
from runner.mixtures.qm9 import QM9
from tests.mixtures.molecules import UNCHARACTERIZED, molecule, write_sdf, write_xyz

REGRESSION = {"_target_": "runner.tasks.regression.Regression"}
EV = 27.211386
"""A hartree."""


def make(root: Path, *names: str, **keys) -> QM9:
    tasks = {name: dict(REGRESSION) for name in names or molecules.TARGETS}
    return QM9(str(root.parent), tasks=tasks, **({"path": root.name, "validation": 4, "test": 5} | keys))


def examples(mixture: QM9) -> dict[int, object]:
    found = [d["qm9"] for d in map(mixture.datasets, ("train", "validation", "test"))]
    return {int(e.id.split()[1]): e for d in found for e in (d.example(i, None) for i in range(len(d)))}


def check(found: dict, bonds: bool) -> None:
    for i, example in found.items():
        made = molecule(i)
        np.testing.assert_array_equal(example.inputs["atoms"], made.atoms)
        np.testing.assert_allclose(example.inputs["positions"], made.positions, atol=1e-6)
        expected = np.zeros((len(made.atoms),) * 2, int)
        for a, b, kind in made.bonds if bonds else ():
            expected[a, b] = expected[b, a] = kind
        np.testing.assert_array_equal(example.inputs["bonds"], expected)
        for name in ("mu", "alpha", "r2", "cv"):
            np.testing.assert_allclose(example.targets[name], made.values[name], rtol=1e-6)
        for name in ("homo", "lumo", "gap", "zpve"):
            np.testing.assert_allclose(example.targets[name], made.values[name] * EV, rtol=1e-6)


@pytest.mark.parametrize("inside", ["", "raw"])
def test_the_sdf_layout(tmp_path, inside) -> None:
    write_sdf(tmp_path / "qm9" / inside, 24)
    mixture = make(tmp_path / "qm9")
    assert mixture.check() == []
    found = examples(mixture)
    assert sorted(found) == [i for i in range(1, 25) if i not in UNCHARACTERIZED]
    check(found, bonds=True)
    for i, example in found.items():
        for name in ("u0", "u", "h", "g"):
            kcal = molecule(i).values[f"{name}_atom" if name == "u0" else f"{name}298_atom"]
            np.testing.assert_allclose(example.targets[name], kcal / 23.0605, rtol=1e-5)


@pytest.mark.parametrize("tar", [True, False])
def test_the_authors_layout(tmp_path, tar) -> None:
    mixture = make(write_xyz(tmp_path / "qm9", 24, tar))
    assert mixture.check() == []
    found = examples(mixture)
    assert sorted(found) == [i for i in range(1, 25) if i not in UNCHARACTERIZED]
    check(found, bonds=False)


def test_energies_of_atomisation_are_those_of_the_table(tmp_path) -> None:
    """Methane as both archives have it: U0 = -40.47893 hartree, -395.999594594 kcal/mol from its atoms."""
    root = write_xyz(tmp_path / "qm9", 1, tar=False)
    atoms = "\n".join(f"{s}\t0\t0\t{k}\t0" for k, s in enumerate("CHHHH"))
    properties = "157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893"
    line = f"gdb 1\t{properties}\t-40.476062\t-40.475117\t-40.498597\t6.469\t"
    (root / "dsgdb9nsd.xyz/dsgdb9nsd_000001.xyz").write_text(f"5\n{line}\n{atoms}\n1\nC\tC\nx\n")
    values = dict(zip(molecules.TARGETS, molecules.read(root).targets[0], strict=True))
    kcal = {"u0": -395.999594594, "u": -398.643290011, "h": -401.014646522, "g": -372.471772148}
    for name, value in kcal.items():
        assert values[name] == pytest.approx(value / 23.060548, rel=1e-5)


def test_packed_molecules_are_the_same(tmp_path) -> None:
    root = write_sdf(tmp_path / "qm9", 24)
    molecules.pack(root, tmp_path / "copy/qm9")
    copy = make(tmp_path / "copy/qm9")
    assert copy.check() == []
    plain, packed = examples(make(root)), examples(pickle.loads(pickle.dumps(copy)))  # noqa: S301
    assert list(plain) == list(packed)
    for a, b in zip(plain.values(), packed.values(), strict=True):
        for name in (*a.inputs, *a.targets):
            np.testing.assert_array_equal((a.inputs | a.targets)[name], (b.inputs | b.targets)[name])


def test_splits(tmp_path) -> None:
    root = write_sdf(tmp_path / "qm9", 24)
    sizes = [len(make(root).datasets(s)["qm9"]) for s in ("train", "validation", "test")]
    assert sizes == [13, 4, 5]
    shares = [len(make(root, validation=0.1, test=0.5).datasets(s)["qm9"]) for s in ("train", "validation", "test")]
    assert shares == [10, 1, 11]
    first, again, other = (set(make(root, split_seed=s).datasets("test")["qm9"]._numbers) for s in (0, 0, 1))
    assert first == again != other
    with pytest.raises(UserError, match="no example for train"):
        make(root, test=22).datasets("train")


def test_molecules_of_a_batch_are_padded(tmp_path) -> None:
    dataset = make(write_sdf(tmp_path / "qm9", 24), "mu", "gap").datasets("train")["qm9"]
    rows = [dataset.example(i, None) for i in range(4)]
    group = collate("qm9", rows)
    most = max(len(r.inputs["atoms"]) for r in rows)
    assert group.inputs["atoms"].shape == (4, most)
    assert group.inputs["positions"].shape == (4, most, 3)
    assert group.inputs["bonds"].shape == (4, most, most)
    for i, row in enumerate(rows):
        count = len(row.inputs["atoms"])
        assert group.inputs["atoms"][i].tolist() == [*row.inputs["atoms"], *[0] * (most - count)]
        assert not group.inputs["positions"][i, count:].any()
        assert not group.inputs["bonds"][i, count:].any() and not group.inputs["bonds"][i, :, count:].any()


def test_what_is_missing_is_one_error(tmp_path) -> None:
    (problem,) = make(tmp_path / "qm9").check()
    assert "runner data prepare qm9" in problem.hint
    root = write_sdf(tmp_path / "qm9", 8)
    (root / "gdb9.sdf.csv").unlink()
    (root / "uncharacterized.txt").unlink()
    (problem,) = make(root).check()
    assert "lacks gdb9.sdf.csv and uncharacterized.txt" in problem.what
    assert "did you mean 'alpha'?" in make(write_sdf(tmp_path / "two/qm9", 8), "alhpa").check()[0].hint


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("gdb9.sdf", lambda t: t[:400], "cannot read .*gdb9.sdf"),
        ("gdb9.sdf", lambda t: t.replace(" C  ", " Xx "), "cannot read .*gdb9.sdf"),
        ("gdb9.sdf.csv", lambda t: t.replace("lumo", "gumo"), "cannot read .*lumo"),
        ("gdb9.sdf.csv", lambda t: t.splitlines()[0] + "\n", "has no molecule"),
    ],
)
def test_damaged_files(tmp_path, file, change, message) -> None:
    root = write_sdf(tmp_path / "qm9", 8)
    (root / file).write_text(change((root / file).read_text()))
    with pytest.raises(UserError, match=message):
        make(root).datasets("test")


def test_damaged_archives(tmp_path) -> None:
    root = write_xyz(tmp_path / "qm9", 8, tar=True)
    path = root / molecules.TAR
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged"):
        make(root).datasets("test")
    (root / molecules.PACKED).write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"cannot read .*qm9\.npz"):
        make(root).datasets("test")
