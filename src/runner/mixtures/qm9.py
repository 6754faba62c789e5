"""QM9: properties of 130,831 small molecules, from the archives that are published, or packed into one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.kinds import NonNegativeFloat, NonNegativeInt
from runner.errors import Problem, UserError
from runner.mixtures import molecules
from runner.mixtures.base import Annotation, Dataset, Example, Mixture, Split, carve, check_tasks
from runner.mixtures.locate import locate, missing
from runner.mixtures.molecules import ELEMENTS, TARGETS, Molecules
from runner.mixtures.published import Download, Progress, Published
from runner.specs import InputSpec

MOST_ATOMS = 29
_SITE = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/molnet_publish/qm9.zip"
_FIGSHARE = "https://ndownloader.figshare.com/files"


class QM9(Mixture):
    """One data set of molecules; tasks are properties: `mu` (debye), `alpha` (bohr³), `r2` (bohr²), `cv` (cal/mol/K),
    in eV `homo`, `lumo`, `gap` and `zpve`, and in eV of atomisation `u0`, `u`, `h` and `g`.

    Layouts: gdb9.sdf with gdb9.sdf.csv (MoleculeNet, PyTorch Geometric; atoms, positions and bonds), or
    dsgdb9nsd.xyz.tar.bz2 or its unpacked files (the authors'; without bonds), each with uncharacterized.txt, which
    names 3,054 molecules that are left out; or qm9.npz, which `runner data prepare` makes of either, and which opens
    in a second instead of a minute. The splits are random, as published: test, then validation, then the rest.

    Args:
        path: the folder, see `runner.mixtures.locate`.
        validation, test: share or number of molecules. split_seed: decides which.
    """

    input_kind = "graph"
    option = "qm9"
    published = Published(
        home="https://doi.org/10.6084/m9.figshare.c.978904.v5",
        downloads=(
            Download(_SITE, "qm9.zip", unpack=molecules.SDF),
            Download(f"{_FIGSHARE}/3195404", "uncharacterized.txt", 486_752, "md5:a361887bacb427b8a0ce7903d92a53b4"),
        ),
        counts={"all": 130_831},
        ranges={"mu": (0.0, 30.0), "cv": (0.0, 50.0), "zpve": (0.0, 8.0), "gap": (0.0, 17.0)},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        validation: NonNegativeFloat,
        test: NonNegativeFloat,
        split_seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.path = path
        self.validation, self.test, self.split_seed = validation, test, split_seed
        self.bonds: bool | None = None  # whether the archive that a run was trained on had them, where that was kept

    def check(self) -> list[Problem]:
        problems = check_tasks(self.tasks, dict.fromkeys(TARGETS, Annotation("pooled", "regression")))
        if self.located is None:
            get = "runner data prepare qm9 --root DIR downloads it; or put one of its archives at one of these places"
            what, marker = "QM9", " or ".join(molecules.MARKERS)
            problem = missing(what, self.path, self.data_root, get, marker=marker, see="runner data prepare qm9")
            return [*problems, problem]
        return problems + molecules.lacking(self.located)

    def setup(self, pretrained: str | None) -> InputSpec:
        return InputSpec("graph", elements=ELEMENTS, num_atoms=MOST_ATOMS)

    def keep(self) -> dict[str, Any]:
        return {"bonds": bool(len(self.molecules.bonds)) if self.bonds is None else self.bonds}

    def restore(self, kept: Mapping[str, Any], pretrained: str | None) -> None:
        self.bonds = kept["bonds"]

    def datasets(self, split: Split) -> dict[str, Dataset]:
        everything = self.molecules
        rest, test = carve(len(everything), self.test, self.split_seed)
        train, validation = carve(len(rest), self.validation, self.split_seed)
        chosen = {"train": rest[train], "validation": rest[validation], "test": test}[split]
        return {"qm9": MoleculeSet(everything, chosen, tuple(self.tasks))}

    @property
    def folder(self) -> str:
        """Where `runner data prepare` puts it, below a root."""
        return self.path

    def count(self) -> dict[str, int]:
        """All molecules that are used; their splits are drawn."""
        return {"all": len(self.molecules)}

    @property
    def converted(self) -> bool:
        """Whether there is nothing left to convert."""
        return self.located is not None and (self.located / molecules.PACKED).is_file()

    def convert(self, target: Path, progress: Progress) -> str:
        """Write all molecules into one file in `target`; returns what was done."""
        if self.located is None:
            raise UserError(self.check())
        progress("molecules", 0, 0)
        return f"{len(molecules.pack(self.located, target)):,} molecules in {target / molecules.PACKED}"

    @cached_property
    def located(self) -> Path | None:
        """The folder, None where it is not there."""
        return locate(self.path, self.data_root, molecules.MARKERS)

    @cached_property
    def molecules(self) -> Molecules:
        """All molecules but the uncharacterised ones.

        Raises:
            UserError: the archive is not there, or damaged.
        """
        if self.located is None:
            raise UserError(self.check())
        return molecules.read(self.located)


class MoleculeSet:
    """One split.

    Args:
        molecules: of all splits. numbers: those of this one. tasks: whose properties are targets.
    """

    name = "qm9"

    def __init__(self, molecules: Molecules, numbers: np.ndarray, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self._molecules, self._numbers = molecules, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """`atoms` (N,), `positions` (N, 3), `bonds` (N, N), and a number per task; nothing is augmented."""
        number = int(self._numbers[index])
        inputs = self._molecules.graph(number)
        properties = self._molecules.targets[number]
        targets = {task: np.asarray(properties[TARGETS.index(task)], np.float32) for task in self.tasks}
        return Example(inputs, targets, f"gdb {self._molecules.ids[number]}")
