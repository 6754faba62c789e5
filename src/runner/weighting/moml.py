"""MOML: weights learned by several held-out objectives at once (Ye et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.bilevel import LookAhead
from runner.weighting.mgda import Norm, min_norm_weights, normalise
from runner.weighting.own_adam import OwnAdam


class MOML(LossWeighting):
    """total = Σ_k w_k L_k, w = softmax(ξ), ξ descending all tasks' held-out losses after one step.

    Ye et al., "Multi-Objective Meta Learning", NeurIPS 2021, section 4 (multi-task learning), with one inner step
    θ' = θ − η Σ w_k ∇L_k. Since ∂θ'/∂w_k = −η ∇L_k, the gradient of task j's held-out loss F_j is exactly

        ∂F_j(θ')/∂w_k = −η ⟨∇F_j(θ'), ∇L_k(θ)⟩,

    no Hessian needed. MGDA gives a common descent direction of these K vectors; ξ follows it by Adam before the step
    uses w. ξ and Adam's state are buffers. Tasks that are absent take no part in the softmax.

    Args:
        lr: learning rate of ξ.
        step_size: η; None takes the model's learning rate in that step.
        norm: what MGDA divides the K gradients by while solving, see `mgda`.
        held_out: "validation", or "train" for other training examples.
    """

    log_losses: ClassVar[bool] = False  # it looks ahead with the plain losses
    xi: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        lr: PositiveFloat = 1e-3,
        step_size: PositiveFloat | None = None,
        norm: Literal["none", "l2", "loss", "loss+"] = "l2",
        held_out: Literal["validation", "train"] = "validation",
    ) -> None:
        super().__init__(tasks)
        self.step_size = step_size
        self.norm: Norm = norm
        self.look_ahead_on = held_out
        self.register_buffer("xi", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = OwnAdam(len(tasks), lr)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return (self.xi[present].softmax(0) * losses).sum()

    def look_ahead(self, world: LookAhead) -> None:
        present, others = world.present("train"), world.present("held_out")
        if not len(present) or not len(others):
            return
        step_size = self.step_size or world.lr
        weights = self.xi[present].softmax(0)
        grads_kP = world.gradients("train")
        move_P = -step_size * (weights.float() @ grads_kP)
        losses = world.losses("held_out", at=move_P)
        there_jP = world.gradients("held_out", at=move_P)
        slopes_jk = hypergradients((there_jP @ grads_kP.T).double(), weights, step_size)
        if not slopes_jk.isfinite().all():
            return  # an overflow of the loss scale, or losses that the step itself will report
        solution = min_norm_weights(normalise(slopes_jk @ slopes_jk.T, losses, self.norm))
        self.xi[present] += self.adam.change(solution @ slopes_jk, present)


def hypergradients(products_jk: Tensor, weights: Tensor, step_size: float) -> Tensor:
    """∂F_j/∂ξ_k (j, k), given ⟨∇F_j(θ'), ∇L_k(θ)⟩ (j, k) and w = softmax(ξ) (k,)."""
    by_weight = -step_size * products_jk
    return (by_weight - by_weight @ weights[:, None]) * weights
