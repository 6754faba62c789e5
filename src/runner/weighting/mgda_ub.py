"""MGDA-UB: MGDA on the gradients of the shared representation (Sener and Koltun 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runner.config.kinds import PositiveInt
from runner.tasks.base import Task
from runner.weighting.mgda import MGDA


class MGDAUB(MGDA):
    """The weights of MGDA's upper bound: the shortest combination of ∂L_k/∂Z, Z the shared features.

    Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, section 3.3, MGDA-UB: where
    the Jacobian of the features has full rank its solution is Pareto-stationary too, and the trunk is passed once.

    Args:
        norm: what each gradient is divided by while solving: "none", its length ("l2"), its loss, or both ("loss+").
        heads: the authors' code weighs the task-specific parameters too.
        scale: "paper" is coefficients that sum to 1.
        every: see `GradientWeighting`.
    """

    mode = "representation"

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        norm: Literal["none", "l2", "loss", "loss+"] = "none",
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
    ) -> None:
        super().__init__(tasks, norm=norm, heads=heads, scale=scale, every=every, mode="representation")
