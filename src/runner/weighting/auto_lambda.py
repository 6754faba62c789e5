"""Auto-λ: weights learned so that a step on the training loss helps on held-out examples (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat
from runner.errors import Problem, UserError, suggest
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.bilevel import LookAhead
from runner.weighting.own_adam import OwnAdam

_REACH = 0.01
"""Length of the step of the finite differences, as in the authors' code (and in DARTS)."""


class AutoLambda(LossWeighting):
    """total = Σ_k λ_k L_k, λ following the gradient of the held-out loss after one step.

    Liu, James, Davison and Johns, "Auto-Lambda: Disentangling Dynamic Task Relationships", TMLR 2022, eq. 3 to 6:
    θ' = θ − α ∇_θ Σ λ_k L_k, and with v the gradient of Σ_{primary} L_k(held out) at θ'

        ∂/∂λ_k ≈ −α (L_k(θ + εv) − L_k(θ − εv)) / 2ε,  ε = 0.01/‖v‖,

    the derivative of the training loss along v by central differences. λ is updated by Adam before the step uses it.
    λ and Adam's state are buffers. Tasks that are absent from a step keep theirs.

    Args:
        lr: learning rate of λ.
        init: initial λ of every task.
        primary: the tasks whose held-out losses count; None counts all.
        step_size: α; None takes the model's learning rate in that step.
        held_out: "validation", or "train" for other training examples, as in the authors' experiments without a
            validation set.
    """

    log_losses: ClassVar[bool] = False  # it looks ahead with the plain losses
    weights: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        lr: PositiveFloat = 1e-4,
        init: PositiveFloat = 0.1,
        primary: list[str] | None = None,
        step_size: PositiveFloat | None = None,
        held_out: Literal["validation", "train"] = "validation",
    ) -> None:
        super().__init__(tasks)
        self.step_size = step_size
        self.look_ahead_on = held_out
        unknown = [name for name in primary or [] if name not in tasks]
        if unknown:
            raise UserError(
                [Problem(f"unknown task '{name}' in weighting.primary", suggest(name, tasks)) for name in unknown]
            )
        self.primary = [float(primary is None or name in primary) for name in tasks]
        self.register_buffer("weights", torch.full((len(tasks),), init, dtype=torch.float64))
        self.adam = OwnAdam(len(tasks), lr)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return (self.weights[present] * losses).sum()

    def look_ahead(self, world: LookAhead) -> None:
        present, others = world.present("train"), world.present("held_out")
        primary = torch.tensor(self.primary, device=others.device)[others]
        if not primary.any() or not len(present):
            return
        step_size = self.step_size or world.lr
        grad_P, _ = world.gradient("train", self.weights[present].float())
        there_P, _ = world.gradient("held_out", primary, at=-step_size * grad_P)
        norm = there_P.norm()
        # Not finite: an overflow of the loss scale, or losses that the step itself will report.
        if not (norm.isfinite() and norm > 0):
            return
        reach = _REACH / norm
        ahead, behind = (world.losses("train", at=sign * reach * there_P).double() for sign in (1.0, -1.0))
        slope = -step_size * (ahead - behind) / (2 * reach)
        if slope.isfinite().all():
            self.weights[present] += self.adam.change(slope, present)
