"""Geometric loss strategy (Chennupati et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive


class GLS(LossWeighting):
    """total = (Π_k L_k)^(1/K), computed as exp(mean_k log L_k); K counts the present tasks.

    Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
    Learning", CVPR Workshops 2019. The weights are total / (K·L_k): multiplying one loss by c multiplies the
    whole gradient by c^(1/K) and changes nothing between the tasks.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__(tasks)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return losses.double().log().mean().exp()  # a product of many small losses would underflow

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        require_positive("gls", self.task_names, losses, present)
