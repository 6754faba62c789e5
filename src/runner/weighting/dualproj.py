"""DualProj: the mean gradient projected onto the dual cone (Lopez-Paz and Ranzato 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.upgrad import dual_cone_projections


class DualProj(GradientWeighting):
    """The vector nearest to the mean gradient along which no task's loss increases.

    Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, eq. 11, as an aggregator in
    Quinton and Rey 2024.

    Args:
        reg_eps: added to the diagonal of GG/trace(GG); smaller is closer to no conflict, larger is smoother.
        heads: task-specific parameters on their plain loss, or with the coefficient too.
        scale: "paper" is the projected mean gradient.
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
        start = np.full((1, len(gram)), 1.0 / len(gram))
        return dual_cone_projections(gram, self.reg_eps, start)[0]
