"""FairGrad: α-fair allocation of the descent (Ban and Ji 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.nash_mtl import clip_factor
from runner.weighting.solvers import Array, fair, on_gram, without_zeros


class FairGrad(GradientWeighting):
    """w > 0 with GGw = w^(−1/α): the α-fair utility of the tasks' decreases is maximal.

    Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, eq. 4 (there by non-linear least squares,
    here by Newton's method). GG is not normalised, as in the paper: for α other than 1 the result depends on the
    common scale of the losses.

    Args:
        alpha: 1 is proportional fairness (Nash-MTL's system), larger values approach max-min fairness (MGDA).
        max_norm: length at which the gradient of the shared parameters is clipped (the authors' code); 0 for none.
        heads: the authors' code leaves task-specific parameters on their plain loss.
        scale: "paper" is the solution as it is, which depends on the scale of the losses; clipping comes after it.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        alpha: PositiveFloat = 2.0,
        max_norm: NonNegativeFloat = 1.0,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.alpha = alpha
        self.max_norm = max_norm

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return gram.new_ones(1) if len(gram) == 1 else fair_weights(gram, self.alpha)

    def clip(self, coefficients: Tensor, gram: Tensor) -> Tensor:
        return coefficients * clip_factor(gram, coefficients, self.max_norm)


@on_gram
def fair_weights(gram: Array, alpha: float) -> Array:
    """Weights w (K,) with GGw = w^(−1/α); a zero gradient gets the mean weight of the others."""
    return without_zeros(gram, lambda part: fair(part, power=1.0 / alpha))
