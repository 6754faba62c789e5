"""FAMO: fast adaptive multitask optimization (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import per_task, require_positive

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam, as in the release."""
OFFSET = 1e-8
"""Added to every loss before its logarithm, as in the release."""


class FAMO(LossWeighting):
    """total = c·Σ_k z_k log(L_k - b_k), z = softmax(ξ), c = 1/Σ_k z_k/(L_k - b_k): all losses fall at one rate.

    Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, algorithm 1. The weights of the losses are
    c·z_k/(L_k - b_k), which sum to 1. After the optimizer has moved the model, the losses of the same batch are
    computed again, and ξ follows the gradient of z·δ with δ_k = log(L_k before) - log(L_k after).
    The paper writes a plain step ξ ← ξ - β(… + γξ); its released code uses Adam with learning rate β and weight decay
    γ, which is what is done here. The release also clips the shared gradient to norm 1: set trainer.clip_norm=1 for it.

    ξ, and Adam's moments and step counts per task, are buffers: part of the checkpoint, never seen by the model's
    optimizer. Tasks that are absent from a step take no part in the softmax, and their part of the state stays.

    Args:
        beta: β, learning rate of ξ.
        gamma: γ, weight decay of ξ; pulls the weights of the log-losses back to equal.
        min_losses: task → b_k, a lower bound of its loss; 0 for tasks that are not named.
        scale: "mean": the weights sum to 1 as in the paper; "sum": to the number of present tasks.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses
    wants_second_losses: ClassVar[bool] = True
    xi: Tensor
    momentum: Tensor
    square: Tensor
    updates: Tensor
    min_losses: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        beta: PositiveFloat = 0.025,
        gamma: NonNegativeFloat = 0.001,
        min_losses: dict[str, float] | None = None,
        scale: Literal["sum", "mean"] = "mean",
    ) -> None:
        super().__init__(tasks)
        self.beta = beta
        self.gamma = gamma
        self.scale = scale
        self.before: Tensor | None = None  # lives from the end of a step to the second losses: no checkpoint between
        self.register_buffer("min_losses", per_task("min_losses", min_losses, tasks, 0.0))
        for name in ("xi", "momentum", "square", "updates"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=torch.float64))

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        z = torch.softmax(self.xi[present], 0)
        distance = self._distance(losses, present)
        total = (z * distance.log()).sum() / (z / distance).sum().detach()
        return total * len(losses) if self.scale == "sum" else total

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        self.before = self._logs(losses, present)

    def after_update(self, losses: Tensor, present: Tensor) -> None:
        if self.before is None:
            raise RuntimeError("the second losses of a step came before its first")
        fallen = self.before - self._logs(losses, present)
        self.before = None
        xi = self.xi[present]
        z = torch.softmax(xi, 0)
        # Gradient of z·δ with respect to ξ; descending it moves weight to the tasks that fell least.
        self._adam(z * (fallen - (z * fallen).sum()) + self.gamma * xi, present)

    def _distance(self, losses: Tensor, present: Tensor) -> Tensor:
        return losses.double() - self.min_losses[present] + OFFSET

    def _logs(self, losses: Tensor, present: Tensor) -> Tensor:
        distance = self._distance(losses, present)
        require_positive(
            "famo",
            self.task_names,
            distance,
            present,
            "the number shown is the loss minus weighting.min_losses: lower it for this task",
        )
        return distance.log()

    def _adam(self, grad: Tensor, present: Tensor) -> None:
        """One step of Adam on the present tasks' ξ, with a step count of each task's own."""
        self.updates[present] += 1
        self.momentum[present] = BETAS[0] * self.momentum[present] + (1 - BETAS[0]) * grad
        self.square[present] = BETAS[1] * self.square[present] + (1 - BETAS[1]) * grad.square()
        t = self.updates[present]
        momentum = self.momentum[present] / (1 - BETAS[0] ** t)
        root = (self.square[present] / (1 - BETAS[1] ** t)).sqrt()
        self.xi[present] -= self.beta * momentum / (root + EPSILON)
