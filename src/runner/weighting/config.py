"""ConFIG: conflict-free inverse gradients (Liu, Chu and Thuerey 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import Array, normalised, on_gram, pseudo_inverse, without_zeros


class ConFIG(GradientWeighting):
    """The direction with equal cosines to all gradients, as long as the sum of their projections on it.

    Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", 2024, eq. 2 and
    3: d̂ = pinv(U)·1 with the unit gradients as rows of U. Because pinv(U) = Uᵀ pinv(UUᵀ), the matrix of cosines is
    enough. Without any direction of equal cosines (opposite gradients) the gradient is zero.

    Args:
        heads: the paper treats the parameters of the whole network alike.
        scale: "paper" is as long as the sum of the gradients' projections on it.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return conflict_free(gram)


@on_gram
def conflict_free(gram: Array) -> Array:
    """Coefficients (K,) of the conflict-free gradient."""
    return without_zeros(gram, _conflict_free)


def _conflict_free(gram: Array) -> Array:
    cosines, norms = normalised(gram)
    beta = pseudo_inverse(cosines).sum(1)  # of the unit gradients, d = Uᵀβ
    product = cosines @ beta
    squared = beta @ product
    if squared < 1e-6:
        return np.zeros(len(gram))
    return (product @ norms) / squared * beta / norms
