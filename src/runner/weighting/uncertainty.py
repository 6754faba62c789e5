"""Uncertainty weighting (Kendall, Gal and Cipolla 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting


class Uncertainty(LossWeighting):
    """total = ½ Σ_k (c_k e^{-s_k} L_k + s_k) with learned s_k = log σ_k²; c is 1 for regression, 2 for classification.

    Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, eq. 7 and 10. A task
    that is absent from a step contributes neither its loss nor its regulariser.

    Args:
        lr: learning rate of s; None takes the model's.
        init: initial s.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    factors: Tensor

    def __init__(self, tasks: Mapping[str, Task], *, lr: PositiveFloat | None = None, init: float = 0.0) -> None:
        super().__init__(tasks)
        self.lr = lr
        self.log_variance = nn.Parameter(torch.full((len(tasks),), float(init)))
        factors = [2.0 if task.loss_kind == "classification" else 1.0 for task in tasks.values()]
        self.register_buffer("factors", torch.tensor(factors))

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        s = self.log_variance[present]
        return 0.5 * (self.factors[present] * torch.exp(-s) * losses + s).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": [self.log_variance], "weight_decay": 0.0}
        return [group | ({} if self.lr is None else {"lr": self.lr})]
