"""MoDo: multi-objective gradients with double sampling (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import CrossWeighting
from runner.weighting.moco import project_simplex
from runner.weighting.step import to_host


class MoDo(CrossWeighting):
    """Weights that move slowly towards MGDA's, by an unbiased estimate: gradients of two independent samples.

    Chen, Fernando, Ying and Chen, "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
    Conflict-Avoidance", NeurIPS 2023, algorithm 1: λ ← Π(λ − γ (G_B G_Aᵀ + ρI) λ), then θ follows Σ_k λ_k ∇L_k of a
    third sample. λ is a buffer; tasks that are absent from a part keep theirs, the others share what they had.

    Args:
        gamma: step of the weights; compare with 1/‖g‖².
        rho: regularises the weights towards equal ones.
        heads: task-specific parameters on their plain loss, or weighted too.
        scale: "paper" is weights that sum to 1.
        shared: see `GradientWeighting`.
    """

    weights: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        gamma: PositiveFloat = 0.001,
        rho: NonNegativeFloat = 0.1,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.gamma, self.rho = gamma, rho
        self.register_buffer("weights", torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64))

    def update(self, cross: Tensor, present: Tensor) -> None:
        mine = to_host(self.weights)[present]
        share = mine.sum()
        if share > 0:
            mine = mine / share
            mine = project_simplex(mine - self.gamma * (cross @ mine + self.rho * mine))
            self.weights[present] = (mine * share).to(self.weights)

    def current(self, present: Tensor) -> Tensor:
        mine = to_host(self.weights)[present]
        return mine / mine.sum() if mine.sum() > 0 else torch.full_like(mine, 1 / len(mine))
