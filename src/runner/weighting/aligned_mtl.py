"""Aligned-MTL: independent component alignment (Senushkin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.solvers import FLOAT32_EPS, Array, on_gram

ScaleMode = Literal["min", "median", "rmse"]


class AlignedMTL(GradientWeighting):
    """The nearest gradient matrix whose singular values are all alike: no conflict, no dominance.

    Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, algorithm 1: coefficients
    B·1 with B = σ V Λ^(−½) Vᵀ and GG = V Λ Vᵀ.

    Args:
        scale_mode: the common singular value σ: the smallest ("min", the paper), the median, or the root mean square.
        heads: the authors' code leaves task-specific parameters on their plain loss.
        scale: "paper" is the sum of the aligned gradients (the authors' code; others take their mean).
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        scale_mode: Literal["min", "median", "rmse"] = "min",
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.scale_mode: ScaleMode = scale_mode

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return aligned(gram, self.scale_mode)


@on_gram
def aligned(gram: Array, scale_mode: ScaleMode = "min", tolerance: float = FLOAT32_EPS) -> Array:
    """Coefficients (K,) of the sum of the aligned gradients.

    Args:
        gram: (K, K).
        scale_mode: see `AlignedMTL`.
        tolerance: eigenvalues up to K·tolerance·largest do not count; a smallest one made of rounding errors would
            shrink the whole gradient.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > tolerance * len(gram) * max(values[-1], 0.0)
    if not kept.any():
        return np.ones(len(gram))
    values, vectors = values[kept], vectors[:, kept]
    target = {"min": np.min, "median": np.median, "rmse": np.mean}[scale_mode](values)
    return vectors @ (np.sqrt(target / values) * vectors.sum(0))
