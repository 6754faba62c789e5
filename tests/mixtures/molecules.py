"""Miniatures of QM9's archives: made-up chains of atoms with made-up properties."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
COLUMNS = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv")
ATOMIC = ("u0_atom", "u298_atom", "h298_atom", "g298_atom")
UNCHARACTERIZED = (3, 7)
"""Numbers of molecules that are left out."""


@dataclass
class Made:
    id: int
    atoms: list[int]
    positions: np.ndarray
    bonds: list[tuple[int, int, int]]
    values: dict[str, float]


def molecule(index: int) -> Made:
    """Molecule `index`, from 1: a chain of 2 to 8 atoms."""
    rng = np.random.default_rng(index)
    count = 2 + index % 7
    atoms = rng.choice([1, 6, 7, 8, 9], count).tolist()
    bonds = [(i, i + 1, int(rng.integers(1, 4))) for i in range(count - 1)]
    values = {name: float(np.round(rng.uniform(0.1, 9), 5)) for name in COLUMNS}
    values |= {name: float(np.round(rng.uniform(-900, -100), 5)) for name in ATOMIC}
    return Made(index, atoms, np.round(rng.normal(size=(count, 3)), 4), bonds, values)


def uncharacterized(root: Path) -> None:
    lines = ["", "3054 molecules that failed the consistency check", "", "Index  Smiles", "-----  ------"]
    lines += [f"{i:6d}  C  C  0.5" for i in UNCHARACTERIZED]
    (root / "uncharacterized.txt").write_text("\n".join([*lines, "------", "end"]) + "\n")


def write_sdf(root: Path, count: int) -> Path:
    """gdb9.sdf with its table."""
    root.mkdir(parents=True, exist_ok=True)
    blocks, rows = [], [",".join(["mol_id", *COLUMNS, *ATOMIC])]
    for i in range(1, count + 1):
        made = molecule(i)
        block = [
            f"gdb_{i}",
            " -OEChem-03231823243D",
            "",
            f"{len(made.atoms):3d}{len(made.bonds):3d}  0     0  0999 V2000",
        ]
        for atom, (x, y, z) in zip(made.atoms, made.positions, strict=True):
            block.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {SYMBOLS[atom]:<3s} 0  0  0  0  0  0  0  0  0  0  0  0")
        block += [f"{a + 1:3d}{b + 1:3d}{kind:3d}  0  0  0  0" for a, b, kind in made.bonds]
        blocks.append("\n".join([*block, "M  END", "$$$$"]) + "\n")
        rows.append(",".join([f"gdb_{i}", *(str(made.values[name]) for name in (*COLUMNS, *ATOMIC))]))
    (root / "gdb9.sdf").write_text("".join(blocks))
    (root / "gdb9.sdf.csv").write_text("\n".join(rows) + "\n")
    uncharacterized(root)
    return root


def xyz(made: Made) -> str:
    """The authors' form, whose small numbers are written 1.5*^-6."""
    values = "\t".join(str(made.values[name]) for name in COLUMNS)
    lines = [str(len(made.atoms)), f"gdb {made.id}\t{values}\t"]
    for atom, (x, y, z) in zip(made.atoms, made.positions, strict=True):
        third = f"{z * 1e3:.1f}*^-3"
        lines.append(f"{SYMBOLS[atom]}\t{x:.4f}\t{y:.4f}\t{third}\t-0.1")
    return "\n".join([*lines, "1341.307\t1341.3284", "C\tC", "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4"]) + "\n"


def write_xyz(root: Path, count: int, tar: bool) -> Path:
    """dsgdb9nsd.xyz.tar.bz2, or the folder that it unpacks to."""
    root.mkdir(parents=True, exist_ok=True)
    texts = {f"dsgdb9nsd_{i:06d}.xyz": xyz(molecule(i)) for i in range(1, count + 1)}
    if tar:
        with tarfile.open(root / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
            for name, text in texts.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
    else:
        (root / "dsgdb9nsd.xyz").mkdir()
        for name, text in texts.items():
            (root / "dsgdb9nsd.xyz" / name).write_text(text)
    uncharacterized(root)
    return root
