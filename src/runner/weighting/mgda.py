"""MGDA: the smallest convex combination of the gradients (Sener and Koltun 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import min_norm, on_gram

Norm = Literal["none", "l2", "loss", "loss+"]


class MGDA(GradientWeighting):
    """The point of smallest norm in the convex hull of the gradients: a descent direction for all tasks, or zero.

    Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, eq. 3 and algorithm 2 (there
    by Frank and Wolfe's method; here exactly). The normalisation decides the weights alone: they apply to the raw
    gradients. A task with a zero gradient takes all the weight: the shared parameters are Pareto-stationary.

    Args:
        norm: what each gradient is divided by while solving: "none", its length ("l2"), its loss, or both ("loss+").
        heads: the authors' code weighs the task-specific parameters too.
        scale: "paper" is coefficients that sum to 1.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        norm: Literal["none", "l2", "loss", "loss+"] = "none",
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.norm: Norm = norm

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return min_norm_weights(normalise(gram, losses, self.norm))


min_norm_weights = on_gram(min_norm)


def normalise(gram: Tensor, losses: Tensor, norm: Norm) -> Tensor:
    """Gram matrix of the normalised gradients."""
    factor = gram.new_ones(len(gram))
    if norm in ("l2", "loss+"):
        factor = factor * gram.diagonal().clamp_min(0).sqrt()
    if norm in ("loss", "loss+"):
        factor = factor * losses.to(gram).abs()
    factor = factor.where(factor > 0, 1.0)
    return gram / factor[:, None] / factor
