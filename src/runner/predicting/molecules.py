"""Molecules of .sdf files (with bonds) and .xyz files (without), one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import UserError
from runner.mixtures.base import Example, Mixture
from runner.mixtures.molecules import NUMBERS
from runner.mixtures.qm9 import QM9
from runner.predicting.reader import Item, Reader
from runner.predicting.request import Request

KINDS = (".sdf", ".mol", ".xyz")
_SYMBOLS = {number: symbol for symbol, number in NUMBERS.items()}


class MoleculeReader(Reader):
    """Molecules with positions in ångström.

    Args:
        elements: atomic numbers that training had.
    """

    noun = "molecule"

    def __init__(self, mixture: QM9, tasks: Sequence[str], request: Request, elements: Sequence[int]) -> None:
        self.path, self.elements, self.bonds = request.file_path, set(elements), mixture.bonds
        self.columns = ["row", "name"]
        self.passes, self.left_out = {"molecule": list(tasks)}, {}

    def items(self) -> Iterator[Item]:
        read = _xyz if self.path.suffix.lower() == ".xyz" else _sdf
        try:
            with open(self.path, encoding="utf-8") as lines:
                for number, (name, found) in enumerate(read(lines), start=1):
                    item = Item(f"molecule {number}", {"row": number, "name": name})
                    if isinstance(found, str):
                        item.errors.append(found)
                    else:
                        item.content = found
                    yield item
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    def prepare(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.content is None:
                continue
            symbols, positions, bonds = item.content
            unknown = sorted({symbol for symbol in symbols if NUMBERS.get(symbol) not in self.elements})
            if unknown:
                known = ", ".join(_SYMBOLS[number] for number in sorted(self.elements))
                item.errors.append(f"it has {', '.join(unknown)}, and training had {known} alone")
                continue
            bonds_NN = np.zeros((len(symbols), len(symbols)), np.int64)
            for a, b, kind in bonds if self.bonds is not False else ():
                bonds_NN[a, b] = bonds_NN[b, a] = kind
            inputs = {"atoms": np.array([NUMBERS[symbol] for symbol in symbols], np.int64), "bonds": bonds_NN}
            item.examples["molecule"] = Example(inputs | {"positions": np.array(positions, np.float32)})

    def name(self, item: Item) -> str:
        return str(item.cells["name"]) or item.where

    def notes(self) -> list[str]:
        if self.path.suffix.lower() == ".xyz" and self.bonds:
            return ["an .xyz file has no bonds, and the model was trained with them: an .sdf file suits it better"]
        return []


def check(mixture: Mixture, tasks: Sequence[str], request: Request) -> None:
    """Whether a file may hold molecules.

    Raises:
        UserError: it is of another kind, or empty.
    """
    path: Path = request.file_path
    if path.suffix.lower() not in KINDS:
        raise UserError(f"--file: '{path}' holds no molecules", f"valid: {', '.join(KINDS)}")
    if not path.stat().st_size:
        raise UserError(f"--file: '{path}' is empty")
    if request.keep or request.columns:
        raise UserError("--keep and --columns are for files with columns, and molecules have none", "leave them out")


Found = tuple[list[str], list[tuple[float, float, float]], list[tuple[int, int, int]]] | str
"""Symbols, positions and bonds (two atoms from 0, and the kind), or what is wrong."""


def _sdf(lines: Iterator[str]) -> Iterator[tuple[str, Found]]:
    block: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield _mol(block)
            block = []
        else:
            block.append(line)
    if any(line.strip() for line in block):  # a .mol file ends without the separator
        yield _mol(block)


def _mol(block: Sequence[str]) -> tuple[str, Found]:
    """One molecule in the V2000 form: columns of fixed width."""
    name = block[0].strip() if block else ""
    try:
        if "V3000" in block[3]:
            return name, "it is in the V3000 form; V2000 is read"
        atoms, bonds = int(block[3][:3]), int(block[3][3:6])
        rows = [line.split() for line in block[4 : 4 + atoms]]
        ends = [(int(b[:3]) - 1, int(b[3:6]) - 1, int(b[6:9])) for b in block[4 + atoms : 4 + atoms + bonds]]
        positions = [(float(r[0]), float(r[1]), float(r[2])) for r in rows]
        counted = len(rows) == atoms > 0 and len(ends) == bonds
        if not counted or any(not 0 <= atom < atoms for end in ends for atom in end[:2]):
            return name, "its atoms and bonds are not those that its fourth line counts"
        if any(not 1 <= kind <= 4 for *_, kind in ends):
            return name, "it has bonds of a kind other than single, double, triple and aromatic"
        return name, ([r[3] for r in rows], positions, ends)
    except (IndexError, ValueError):
        return name, "it is not a molecule in the V2000 form"


def _xyz(lines: Iterator[str]) -> Iterator[tuple[str, Found]]:
    """Number of atoms, a line of comment, and symbol x y z of each atom; then the next molecule."""
    published = False  # QM9's authors write more lines below the atoms
    for line in lines:
        count = line.strip()
        if not count or (published and not count.isdigit()):
            continue
        if not count.isdigit():
            yield "", f"its first line, {count[:40]!r}, is not the number of its atoms; the rest was not read"
            return
        name = next(lines, "").strip()
        published = name.startswith("gdb ")
        rows: list[list[str]] = [r.split() for r in islice(lines, int(count))]
        yield " ".join(name.split()[:2]) if published else name, _xyz_atoms(rows, int(count))


def _xyz_atoms(rows: Sequence[Sequence[str]], count: int) -> Found:
    if len(rows) != count or not count:
        return f"it has {len(rows)} atoms, and its first line says {count}"
    try:
        places: Any = [tuple(float(x.replace("*^", "e")) for x in row[1:4]) for row in rows]
    except ValueError:
        return "its positions are not numbers"
    if any(len(place) != 3 for place in places):
        return "its atoms need a symbol and three numbers each"
    return [row[0] for row in rows], places, []
