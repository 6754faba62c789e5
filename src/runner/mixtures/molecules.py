"""The files that QM9 comes in, and all its molecules in a few arrays."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from runner.errors import Problem, UserError

TARGETS = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv")
"""The properties, in the order of the columns of `Molecules.targets`."""

ELEMENTS = (1, 6, 7, 8, 9)
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

HARTREE = 27.211386245988
"""In eV (CODATA 2018)."""
KCAL_PER_MOL = HARTREE / 627.5094740631
"""In eV."""

# Energies of single atoms in hartree, as the authors publish them: U0, U, H, G of H, C, N, O, F (B3LYP).
_ATOM_ENERGIES = {
    1: (-0.500273, -0.498857, -0.497912, -0.510927),
    6: (-37.846772, -37.845355, -37.844411, -37.861317),
    7: (-54.583861, -54.582445, -54.581501, -54.598897),
    8: (-75.064579, -75.063163, -75.062219, -75.079532),
    9: (-99.718730, -99.717314, -99.716370, -99.733544),
}

PACKED = "qm9.npz"
SDF, TABLE, TAR, UNCHARACTERIZED = "gdb9.sdf", "gdb9.sdf.csv", "dsgdb9nsd.xyz.tar.bz2", "uncharacterized.txt"
FOLDER = "dsgdb9nsd.xyz"
MARKERS = (PACKED, SDF, TAR, FOLDER, f"raw/{SDF}")


@dataclass
class Molecules:
    """Molecules one after the other.

    Attributes:
        ids: (M,) numbers in the archive, from 1.
        starts: (M + 1,) where each begins among the atoms; bond_starts: among the bonds.
        atoms: (A,) uint8 atomic numbers. positions: (A, 3) float32, ångström.
        bonds: (E, 3) uint8: two atoms, counted from 0 within their molecule, and the kind of bond.
        targets: (M, 12) float32, see `TARGETS`; units as in `runner.mixtures.qm9.QM9`.
    """

    ids: np.ndarray
    starts: np.ndarray
    bond_starts: np.ndarray
    atoms: np.ndarray
    positions: np.ndarray
    bonds: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def graph(self, number: int) -> dict[str, np.ndarray]:
        """One molecule as a backbone reads it."""
        start, stop = self.starts[number : number + 2]
        first, last = self.bond_starts[number : number + 2]
        pairs = self.bonds[first:last]
        bonds_NN = np.zeros((stop - start, stop - start), np.int64)
        bonds_NN[pairs[:, 0], pairs[:, 1]] = bonds_NN[pairs[:, 1], pairs[:, 0]] = pairs[:, 2]
        return {
            "atoms": self.atoms[start:stop].astype(np.int64),
            "positions": self.positions[start:stop],
            "bonds": bonds_NN,
        }


@dataclass
class Molecule:
    """One of them, as it is read: `targets` in the units of `Molecules`."""

    id: int
    atoms: list[int]
    positions: list[tuple[float, float, float]]
    bonds: list[tuple[int, int, int]]
    targets: list[float]


def lacking(root: Path) -> list[Problem]:
    """One problem that names every file that a layout lacks; nothing where it is complete."""
    if (root / PACKED).is_file():
        return []
    if (root / "raw" / SDF).is_file():
        root = root / "raw"
    needed = [TABLE, UNCHARACTERIZED] if (root / SDF).is_file() else [UNCHARACTERIZED]
    gone = [name for name in needed if not (root / name).is_file()]
    if not gone:
        return []
    hint = "runner data prepare qm9 --root DIR gets them; uncharacterized.txt names the molecules to leave out"
    return [Problem(f"QM9 in {root} lacks {' and '.join(gone)}", hint, "runner show mixture/qm9")]


def read(root: Path) -> Molecules:
    """All molecules but the uncharacterised ones, from whatever layout is there.

    Raises:
        UserError: files are missing or damaged.
    """
    if (root / PACKED).is_file():
        return _load(root / PACKED)
    if problems := lacking(root):
        raise UserError(problems)
    if (root / "raw" / SDF).is_file():
        root = root / "raw"
    skipped = _uncharacterized(root / UNCHARACTERIZED)
    if (root / SDF).is_file():
        found = _from_sdf(root / SDF, root / TABLE)
    else:
        found = _from_xyz(root)
    return _gather(molecule for molecule in found if molecule.id not in skipped)


def pack(root: Path, target: Path) -> Molecules:
    """Read an archive and write its molecules into one file."""
    everything = read(root)
    target.mkdir(parents=True, exist_ok=True)
    part = target / f".{PACKED}.part"
    with open(part, "wb") as file:
        np.savez(file, **{f.name: getattr(everything, f.name) for f in fields(Molecules)})
    part.replace(target / PACKED)
    return everything


def _load(path: Path) -> Molecules:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Molecules(**{f.name: file[f.name] for f in fields(Molecules)})
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}", "remove it, and run: runner data prepare qm9") from error


def _gather(found: Iterator[Molecule]) -> Molecules:
    ids, counts, bond_counts, atoms, positions, bonds, targets = [], [], [], [], [], [], []
    for m in found:
        ids.append(m.id)
        counts.append(len(m.atoms))
        bond_counts.append(len(m.bonds))
        atoms += m.atoms
        positions += m.positions
        bonds += m.bonds
        targets.append(m.targets)
    if not ids:
        raise UserError("QM9 has no molecule", "download it again")
    return Molecules(
        np.array(ids),
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([[0], np.cumsum(bond_counts)]),
        np.array(atoms, np.uint8),
        np.array(positions, np.float32),
        np.array(bonds, np.uint8).reshape(-1, 3),
        np.array(targets, np.float32),
    )


def _uncharacterized(path: Path) -> set[int]:
    """Numbers of the molecules that failed the authors' consistency check: the first word of each line that has one."""
    words = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {int(w[0]) for w in words if w and w[0].isdigit()}


def _damaged(path: Path, error: object) -> UserError:
    return UserError(f"cannot read {path}: {error}", "the file is damaged: download it again")


def _from_sdf(path: Path, table: Path) -> Iterator[Molecule]:
    """gdb9.sdf (V2000) and its table."""
    try:
        with open(path, encoding="utf-8") as lines, open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                block = _block(lines)
                atoms, bonds = int(block[3][:3]), int(block[3][3:6])
                rows = [line.split() for line in block[4 : 4 + atoms]]
                ends = [(int(line[:3]), int(line[3:6]), int(line[6:9])) for line in block[4 + atoms :][:bonds]]
                yield Molecule(
                    int(row["mol_id"].removeprefix("gdb_")),
                    [NUMBERS[r[3]] for r in rows],
                    [(float(r[0]), float(r[1]), float(r[2])) for r in rows],
                    [(a - 1, b - 1, kind) for a, b, kind in ends],
                    _from_table(row),
                )
    except (OSError, UnicodeDecodeError, KeyError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error


def _block(lines: Iterator[str]) -> list[str]:
    """The lines of the next molecule."""
    block = []
    for line in lines:
        if line.startswith("$$$$"):
            return block
        block.append(line)
    raise ValueError("it ends before its table does")


def _from_table(row: dict[str, str]) -> list[float]:
    value = {name: float(text) for name, text in row.items() if name not in ("mol_id",)}
    electron = [value[name] * HARTREE for name in ("homo", "lumo", "gap")]
    energies = [value[f"{name}_atom"] * KCAL_PER_MOL for name in ("u0", "u298", "h298", "g298")]
    return [value["mu"], value["alpha"], *electron, value["r2"], value["zpve"] * HARTREE, *energies, value["cv"]]


def _from_xyz(root: Path) -> Iterator[Molecule]:
    """dsgdb9nsd_NNNNNN.xyz, of the tar file or unpacked."""
    if (root / FOLDER).is_dir():
        for path in sorted((root / FOLDER).glob("dsgdb9nsd_*.xyz")):
            yield _parse_xyz(path.read_text(encoding="utf-8"), path)
        return
    path = root / TAR
    try:
        with tarfile.open(path, "r:bz2") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".xyz"):
                    yield _parse_xyz(io.TextIOWrapper(file, "utf-8").read(), path)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise _damaged(path, error) from error


def _parse_xyz(text: str, path: Path) -> Molecule:
    """The authors' form of .xyz: numbers may be written 1.5*^-6."""
    try:
        lines = text.replace("*^", "e").splitlines()
        words = lines[1].split()
        v = dict(
            zip(
                ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv"),
                words[5:17],
                strict=True,
            )
        )
        number = {name: float(value) for name, value in v.items()}
        rows = [line.split() for line in lines[2 : 2 + int(lines[0])]]
        atoms = [NUMBERS[row[0]] for row in rows]
        for i, name in enumerate(("u0", "u", "h", "g")):
            number[name] -= sum(_ATOM_ENERGIES[atom][i] for atom in atoms)
        for name in ("homo", "lumo", "gap", "zpve", "u0", "u", "h", "g"):
            number[name] *= HARTREE
        positions = [(float(row[1]), float(row[2]), float(row[3])) for row in rows]
        return Molecule(int(words[1]), atoms, positions, [], [number[name] for name in TARGETS])
    except (KeyError, ValueError, IndexError) as error:
        raise _damaged(path, f"a molecule in it is not as published: {type(error).__name__} {error}") from error
