"""Aligned-MTL-UB: Aligned-MTL on the gradients of the shared representation (Senushkin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.aligned_mtl import AlignedMTL


class AlignedMTLUB(AlignedMTL):
    """The coefficients of Aligned-MTL for the matrix of ∂L_k/∂Z, Z the shared features.

    Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023, section 4.3 (upper bound).

    Args:
        scale_mode: the common singular value σ: the smallest ("min", the paper), the median, or the root mean square.
        heads: the authors' code leaves task-specific parameters on their plain loss.
        scale: "paper" is the sum of the aligned gradients (the authors' code).
        every: see `GradientWeighting`.
    """

    mode = "representation"

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        scale_mode: Literal["min", "median", "rmse"] = "min",
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
    ) -> None:
        super().__init__(tasks, scale_mode=scale_mode, heads=heads, scale=scale, every=every, mode="representation")
