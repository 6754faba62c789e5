"""CAGrad: conflict-averse gradient descent (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import Array, normalised, on_gram, simplex_minimum

_SMOOTH = 1e-12  # added to the square of a length that is 1 for a single gradient: it has no derivative at 0


class CAGrad(GradientWeighting):
    """The direction within c‖g₀‖ of the mean gradient g₀ that helps the worst-off task most.

    Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, algorithm 1. The dual is a
    convex problem over the simplex, min g_wᵀg₀ + c‖g₀‖‖g_w‖, and d = g₀ + c‖g₀‖ g_w/‖g_w‖.

    Args:
        c: radius relative to ‖g₀‖; 0 is the mean gradient, large values approach MGDA.
        rescale: divide by nothing (0), by 1 + c² (1, the authors' code), or by 1 + c (2).
        heads: the authors' code leaves task-specific parameters on their plain loss.
        scale: "paper" is the mean gradient plus the correction.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        c: NonNegativeFloat = 0.4,
        rescale: Literal[0, 1, 2] = 1,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.c = c
        self.rescale = rescale

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        if len(gram) == 1:
            return gram.new_ones(1)
        return conflict_averse(gram, self.c) / {0: 1.0, 1: 1 + self.c**2, 2: 1 + self.c}[self.rescale]


@on_gram
def conflict_averse(gram: Array, c: float) -> Array:
    """Coefficients (K,) of d before any rescaling: 1/K + c‖g₀‖/‖g_w‖ · w.

    Solved for v_k = w_k‖g_k‖, where every number is a cosine: min Σ_k v_k cos(g_k, g₀) + c‖Σ_k v_k u_k‖ with unit
    gradients u_k, v ≥ 0 and Σ_k v_k/‖g_k‖ fixed. A zero gradient makes 0 an upper bound of the dual objective; where
    that is the minimum, d = g₀.
    """
    size = len(gram)
    coefficients = np.full(size, 1.0 / size)
    mean_norm = np.sqrt(max(float(gram.mean()), 0.0))
    active = gram.diagonal() > 0
    if mean_norm == 0 or c == 0:
        return coefficients
    cosines, norms = normalised(gram[np.ix_(active, active)])
    linear = gram[active].mean(1) / norms / mean_norm
    ratio = norms.min() / norms

    def length(v: Array) -> float:
        return float(np.sqrt(max(v @ cosines @ v, 0.0) + _SMOOTH))

    def derivatives(v: Array) -> tuple[Array, Array]:
        norm = length(v)
        unit = cosines @ v / norm
        return linear + c * unit, c / norm * (cosines - np.outer(unit, unit))

    v = simplex_minimum(derivatives, ratio)
    if active.all() or linear @ v + c * length(v) < 0:
        coefficients[active] += c * mean_norm / length(v) * v / norms
    return coefficients
