"""AdaMerging: coefficients that make predictions certain (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from runner.errors import UserError
from runner.merging.data import TaskData
from runner.merging.with_data.coefficients import LearnedCoefficients, entropy_of
from runner.types import Group


@dataclass(kw_only=True)
class AdaMerging(LearnedCoefficients):
    """Minimises Σ_t E[H(f(x; θ₀ + Σ λ τ))] over unlabelled inputs x of every task t (equations 4 and 5).

    The paper adapts to the test inputs themselves, `merging.adapt=test`. `pre` with the trimming and electing of TIES
    makes it AdaMerging++. Entropy falls to zero as well where all predictions fall into one class: the launcher warns.
    """

    def objective(self, output: Tensor, group: Group, data: TaskData, task: str) -> Tensor:
        if data.tasks[task].loss_kind != "classification":
            raise UserError(
                f"merge=adamerging minimises the entropy of predicted classes, task '{task}' has none",
                "leave it out with tasks=[…], or choose another strategy",
                "runner ls merge",
            )
        return entropy_of(output)
