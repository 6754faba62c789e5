"""IMTL-G: the gradient with equal projections on all tasks' gradients (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import Array, normalised, on_gram, pseudo_inverse, without_zeros


class IMTLG(GradientWeighting):
    """Σ_k α_k g_k with equal projections on every g_k/‖g_k‖ and Σα = 1; α may be negative.

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, eq. 6.

    Args:
        heads: the paper leaves task-specific parameters on their own plain loss.
        scale: "paper" is coefficients that sum to 1, some may be negative.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return impartial(gram)


@on_gram
def impartial(gram: Array) -> Array:
    """α (K,), sum 1.

    With unit gradients u_k and α_k = β_k/‖g_k‖, equal projections mean Cβ ∝ 1, C the matrix of cosines. Where C is
    singular its pseudo-inverse gives the smallest such β; where there is none but the zero gradient (opposite
    gradients) the unit gradients are averaged.
    """
    weights = without_zeros(gram, _impartial)
    return weights / weights.sum()


def _impartial(gram: Array) -> Array:
    cosines, norms = normalised(gram)
    beta = pseudo_inverse(cosines).sum(1)
    if np.abs(beta).max() < 1e-6:  # 1 lies in the null space
        beta = np.ones(len(gram))
    weights = beta / norms * norms.min()
    total = weights.sum()
    if abs(total) < 1e-6 * np.abs(weights).sum():  # no combination with sum 1: fall back as above
        weights = norms.min() / norms
        total = weights.sum()
    return weights / total
