"""Nash-MTL: the gradient as a bargaining solution (Navon et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import Array, fair, on_gram, without_zeros


class NashMTL(GradientWeighting):
    """α > 0 with GGα = 1/α: every task gains in proportion, whatever the scale of its loss.

    Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, claim 3.1; GG is divided by its Frobenius norm
    as in the authors' code. They linearise and call a convex solver up to 20 times from the last α; the system is the
    stationarity of a strictly convex function, which Newton's method solves from anywhere, so no warm start is kept.

    Args:
        max_norm: length at which the gradient of the shared parameters is clipped; 0 for no clipping.
        heads: the paper weighs the task-specific parameters too (they are not clipped).
        scale: "paper" is the solution as it is; clipping comes after it.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        max_norm: NonNegativeFloat = 1.0,
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.max_norm = max_norm

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return bargaining(gram)

    def clip(self, coefficients: Tensor, gram: Tensor) -> Tensor:
        return coefficients * clip_factor(gram, coefficients, self.max_norm)


@on_gram
def bargaining(gram: Array) -> Array:
    """α (K,) with (GG/‖GG‖)α = 1/α; a zero gradient gets the mean α of the others."""
    norm = float(np.linalg.norm(gram))
    return without_zeros(gram, lambda part: fair(part / norm, power=1.0))


def clip_factor(gram: Tensor, weights: Tensor, max_norm: float) -> float:
    """What brings Σ_k w_k g_k to at most `max_norm`; 1 where that is 0."""
    norm = float((weights @ gram @ weights).clamp_min(0).sqrt())
    return max_norm / norm if max_norm > 0 and norm > max_norm else 1.0
