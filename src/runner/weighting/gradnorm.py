"""GradNorm: gradient normalisation (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.config.kinds import NonNegativeFloat, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.last_layer import LastLayerWeighting

_LEAST = 1e-3  # of a weight: the update may push it below 0, where the loss would be maximised


class GradNorm(LastLayerWeighting):
    """Weights w_k, learned so that slow tasks get larger gradients at the last shared layer.

    Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018,
    algorithm 1: L_grad = Σ_k |‖w_k g_k‖ − Ḡ r_k^α| with Ḡ the mean norm (held constant), r_k the relative inverse
    training rate (L_k/L_k(0)) / mean; one optimizer step on w, then Σw = K again. L_k(0) is the loss of the first step
    that has the task. Weights and L(0) are part of the checkpoint.

    Args:
        alpha: how strongly training rates are pulled together.
        lr: learning rate of w; None takes the model's.
        heads: "weighted": w are weights of the losses.
        scale: "paper" is weights that sum to K.
        shared: see `PerTaskWeighting`.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    initial_losses: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        alpha: NonNegativeFloat = 1.5,
        lr: PositiveFloat | None = 0.025,
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.alpha = alpha
        self.lr = lr
        self.weights = nn.Parameter(torch.ones(len(tasks)))
        self.register_buffer("initial_losses", torch.full((len(tasks),), float("nan")))

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        with torch.no_grad():
            weights = self.weights.clamp_min(_LEAST)
            self.weights.copy_(weights * (len(weights) / weights.sum()))

    def current(self, present: Tensor) -> Tensor:
        return self.weights.detach()[present]

    def update(self, norms: Tensor, losses: Tensor, present: Tensor) -> None:
        weights, initial = self.weights.detach()[present], self.initial_losses[present]
        self.initial_losses[present] = initial = torch.where(initial.isnan(), losses, initial)
        self.weights.grad = torch.zeros_like(self.weights)
        self.weights.grad[present] = weight_gradient(weights, norms, losses / initial.clamp_min(1e-12), self.alpha)

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": [self.weights], "weight_decay": 0.0}
        return [group | ({} if self.lr is None else {"lr": self.lr})]


def weight_gradient(weights: Tensor, norms: Tensor, ratios: Tensor, alpha: float) -> Tensor:
    """∂L_grad/∂w (K,).

    Args:
        weights: w (K,).
        norms: ‖g_k‖ at the last shared layer (K,).
        ratios: L_k/L_k(0) (K,).
        alpha: see `GradNorm`.
    """
    scaled = weights * norms
    target = scaled.mean() * (ratios / ratios.mean()) ** alpha
    return torch.sign(scaled - target) * norms
