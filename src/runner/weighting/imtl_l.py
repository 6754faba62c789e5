"""IMTL-L: impartial multi-task learning, the balance of losses (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting


class IMTLL(LossWeighting):
    """total = Σ_k (e^{s_k} L_k - s_k) with learned s; at its optimum every scaled loss e^{s_k} L_k is 1.

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, with a = e and b = 1. A task that is absent from a
    step contributes neither its loss nor its -s.

    Args:
        lr: learning rate of s; None takes the model's.
        init: initial s; the paper starts at 0, which is equal weighting.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses

    def __init__(self, tasks: Mapping[str, Task], *, lr: PositiveFloat | None = None, init: float = 0.0) -> None:
        super().__init__(tasks)
        self.lr = lr
        self.log_scale = nn.Parameter(torch.full((len(tasks),), float(init)))

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        s = self.log_scale[present]
        return (s.exp() * losses - s).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": [self.log_scale], "weight_decay": 0.0}
        return [group | ({} if self.lr is None else {"lr": self.lr})]
