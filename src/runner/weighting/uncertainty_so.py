"""UW-SO: analytical uncertainty weighting with softmax (Kirchdorfer et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive


class UncertaintySO(LossWeighting):
    """total = Σ_k w_k L_k with w = softmax(1 / (T·sg[L])): small losses weigh more, nothing is learned.

    Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024: the optimum
    1/L_k of Kendall's weights, normalised by a softmax with temperature. sg[·] stops the gradient.

    The method is not scale-free: a loss in another unit gets another weight, and T must suit the size of the losses.

    Args:
        T: temperature; the larger the closer to equal weights. The paper searches it for every data set.
        scale: "mean": the weights sum to 1 as in the paper; "sum": to the number of present tasks.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses

    def __init__(
        self, tasks: Mapping[str, Task], *, T: PositiveFloat = 1.0, scale: Literal["sum", "mean"] = "mean"
    ) -> None:
        super().__init__(tasks)
        self.T = T
        self.scale = scale

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        weights = torch.softmax(1 / (self.T * losses.detach().double()), 0)
        if self.scale == "sum":
            weights = weights * len(losses)
        return (weights * losses).sum()

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        require_positive("uncertainty_so", self.task_names, losses, present)
