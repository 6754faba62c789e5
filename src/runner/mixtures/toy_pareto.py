"""The toy problem of two objectives: tasks whose losses are functions of the weights alone, so there is no data.

The objectives are those of Liu et al. 2021 (CAGrad) in the form of Navon et al. 2022 (Nash-MTL), which FAMO uses too;
they stand in `runner.architectures.heads.toy_objective`, the point that is moved in `runner.backbones.toy_point`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.config.source import constant
from runner.errors import Problem
from runner.mixtures.base import Dataset, Example, Mixture, Split
from runner.specs import InputSpec


class ToyPareto(Mixture):
    """One empty example per split, with a label for every task, so that every step has all losses."""

    input_kind = "table"

    def __init__(self, data_root: str, *, tasks: Mapping[str, dict[str, Any]]) -> None:
        super().__init__(data_root, tasks=tasks)

    def check(self) -> list[Problem]:
        return [
            Problem(f"'mixture.tasks.{name}' needs labels, and this mixture has none", "choose another mixture")
            for name, task in self.tasks.items()
            if constant(str(task.get("_target_", "")), "needs_labels") is not False
        ]

    def setup(self, pretrained: str | None) -> InputSpec:
        return InputSpec("table", num_numeric=1)

    def datasets(self, split: Split) -> dict[str, Dataset]:
        return {"point": Nothing(split, tuple(self.tasks))}


class Nothing:
    """The empty example."""

    def __init__(self, split: str, tasks: tuple[str, ...]) -> None:
        self.name, self.tasks, self.split = "point", tasks, split

    def __len__(self) -> int:
        return 1

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """`numeric` (1,) and `categorical` (0,) that nobody reads."""
        inputs = {"numeric": np.zeros(1, dtype=np.float32), "categorical": np.zeros(0, dtype=np.int64)}
        return Example(inputs, {task: np.zeros((), dtype=np.float32) for task in self.tasks}, f"point/{self.split}/0")
