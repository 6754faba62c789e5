"""UPGrad: unconflicting projection of the gradients (Quinton and Rey 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import Array, nonnegative_batch, on_gram


class UPGrad(GradientWeighting):
    """Each gradient projected onto the directions that no task's loss increases along; their average.

    Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, eq. 5 and proposition 1.

    Args:
        reg_eps: added to the diagonal of GG/trace(GG); smaller is closer to no conflict, larger is smoother.
        heads: the authors' library leaves task-specific parameters on their plain loss.
        scale: "paper" is the mean of the projections.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        reg_eps: PositiveFloat = 1e-4,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.reg_eps = reg_eps

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return dual_cone_projections(gram, self.reg_eps).mean(0)


@on_gram
def dual_cone_projections(gram: Array, reg_eps: float, start: Array | None = None) -> Array:
    """Row n (N, K): the coefficients v ≥ u_n of smallest vᵀ(GG/trace + ε·1)v, which project Σ_k u_nk g_k.

    Args:
        gram: (K, K).
        reg_eps: ε.
        start: u (N, K); by default the identity, each gradient by itself.
    """
    start = np.eye(len(gram)) if start is None else start
    trace = gram.trace()
    matrix = (gram / trace if trace > 0 else gram) + reg_eps * np.eye(len(gram))
    return start + nonnegative_batch(matrix, -start @ matrix)
