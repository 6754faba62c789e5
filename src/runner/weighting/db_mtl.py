"""DB-MTL: dual balancing of losses and gradients (Lin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeFloat
from runner.tasks.base import Task
from runner.weighting.base import MatrixWeighting
from runner.weighting.buffer import combination

_FLOOR = 1e-8  # keeps the logarithm of a solved task's loss finite, as in the authors' code


class DBMTL(MatrixWeighting):
    """Averaged gradients of the logarithms of the losses, each rescaled to the largest norm, summed.

    Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, algorithm 1:
    ḡ_k ← β_t ḡ_k + (1 − β_t) ∇log L_k from ḡ = 0, and g = max_j ‖ḡ_j‖ · Σ_k ḡ_k/‖ḡ_k‖. The averages (K×P floats) are
    part of the checkpoint.

    Args:
        beta: of the average; β_t = beta/t^beta_sigma in a task's t-th step.
        beta_sigma: 0 for a constant β.
        heads: the paper trains task-specific parameters on log L_k; "weighted" multiplies them by the rescaling too.
        scale: "paper" is the sum of gradients of the largest norm.
        shared: see `MatrixWeighting`.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    per_parameter: ClassVar[tuple[str, ...]] = ("average",)
    average: Tensor
    steps: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        beta: Fraction = 0.9,
        beta_sigma: NonNegativeFloat = 0.0,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.register_buffer("steps", torch.zeros(len(tasks)))

    def combine(self, grads_kP: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_slope = 1.0 / (losses + _FLOOR)
        self.steps[present] += 1
        beta = self.beta / self.steps[present] ** self.beta_sigma
        grads_kP.mul_(log_slope[:, None])
        for row, k in enumerate(present.tolist()):
            self.average[k].lerp_(grads_kP[row], 1 - beta[row])
        average_kP = self.average if len(present) == len(self.average) else self.average[present]
        factors = dual_balance(average_kP.norm(dim=1))
        heads = log_slope * factors if self.heads == "weighted" else log_slope
        return combination(factors, average_kP), factors * log_slope, heads


def dual_balance(norms: Tensor) -> Tensor:
    """Factors (K,) that bring every gradient to the largest norm; a zero gradient stays as it is."""
    return torch.where(norms > 0, norms.max() / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)
