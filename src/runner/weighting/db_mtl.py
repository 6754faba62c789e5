"""DB-MTL: dual balancing of losses and gradients (Lin et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeFloat
from runner.tasks.base import Task
from runner.weighting.tracked import TrackedWeighting

_FLOOR = 1e-8  # keeps the logarithm of a solved task's loss finite, as in the authors' code


class DBMTL(TrackedWeighting):
    """Averaged gradients of the logarithms of the losses, each rescaled to the largest norm, summed.

    Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, algorithm 1:
    ḡ_k ← β_t ḡ_k + (1 - β_t) ∇log L_k from ḡ = 0, and g = max_j ‖ḡ_j‖ · Σ_k ḡ_k/‖ḡ_k‖. The averages (K×P floats) are
    part of the checkpoint.

    Args:
        beta: of the average; β_t = beta/t^beta_sigma in a task's t-th step.
        beta_sigma: 0 for a constant β.
        heads: the paper trains task-specific parameters on log L_k; "weighted" multiplies them by the rescaling too.
        scale: "paper" is the sum of gradients of the largest norm.
        shared: see `PerTaskWeighting`.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
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

    def track(self, losses: Tensor, present: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
        self.steps[present] += 1
        return 1 - self.beta / self.steps[present] ** self.beta_sigma, _slopes(losses)

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factors, slopes = dual_balance(gram.diagonal().sqrt()), _slopes(losses)
        return factors, factors * slopes, slopes * factors if self.heads == "weighted" else slopes


def _slopes(losses: Tensor) -> Tensor:
    """∂log L/∂L (k,)."""
    return 1.0 / (losses + _FLOOR)


def dual_balance(norms: Tensor) -> Tensor:
    """Factors (K,) that bring every gradient to the largest norm; a zero gradient stays as it is."""
    return torch.where(norms > 0, norms.max() / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)
