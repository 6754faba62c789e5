"""SDMGrad: stochastic direction-oriented multi-objective gradients (Xiao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import CrossWeighting
from runner.weighting.moco import project_simplex
from runner.weighting.step import to_host

_MOMENTUM = 0.5


class SDMGrad(CrossWeighting):
    """The common descent direction near the mean gradient, from independent samples: (Σ w_k g_k + λ g₀)/(1 + λ).

    Xiao, Ban and Ji, "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms",
    NeurIPS 2023, algorithm 1: w ← Π(w − β G_B(G_Aᵀw + λ g₀_A)) by `niter` projected steps with momentum 0.5 from the
    last w, with G_B G_Aᵀ divided by the squared mean of the roots of its diagonal (negative entries, which independent
    samples can have, count as 0), all as in the authors' code. They fill three lists of gradients that are one and the
    same, so their samples are not independent; here they are. The model follows a third sample.

    w is a buffer; tasks that are absent from a part keep theirs, the others share what they had.

    Args:
        lamda: λ, how much the direction is drawn to the mean gradient; large is equal weighting.
        niter: steps of w in each step of the model.
        lr: β.
        heads: the authors' code leaves task-specific parameters on their plain loss.
        scale: "paper" is coefficients that sum to 1 (the authors' code for NYUv2 multiplies them by K: tasks).
        shared: see `GradientWeighting`.
    """

    weights: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        lamda: NonNegativeFloat = 0.3,
        niter: PositiveInt = 20,
        lr: PositiveFloat = 10.0,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.lamda, self.niter, self.lr = lamda, niter, lr
        self.register_buffer("weights", torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64))

    def update(self, cross: Tensor, present: Tensor) -> None:
        mine = to_host(self.weights)[present]
        share, unit = mine.sum(), cross.diagonal().clamp_min(0).sqrt().mean() ** 2
        if share > 0 and unit > 0:
            mine = direction_weights(cross / unit, mine / share, self.lamda, self.niter, self.lr)
            self.weights[present] = (mine * share).to(self.weights)

    def current(self, present: Tensor) -> Tensor:
        mine = to_host(self.weights)[present]
        mine = mine / mine.sum() if mine.sum() > 0 else torch.full_like(mine, 1 / len(mine))
        return (mine + self.lamda / len(mine)) / (1 + self.lamda)


def direction_weights(cross: Tensor, weights: Tensor, lamda: float, niter: int, lr: float) -> Tensor:
    """The weights (k,) after `niter` projected gradient steps on C (w + λ/k), C (k, k) normalised."""
    velocity = torch.zeros_like(weights)
    target = lamda * cross.mean(1)
    for _ in range(niter):
        velocity = _MOMENTUM * velocity + cross @ weights + target
        weights = project_simplex(weights - lr * velocity)
    return weights
