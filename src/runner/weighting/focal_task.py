"""MFTCoder's task-level focal loss (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive


class FocalTask(LossWeighting):
    """total = mean_k (1 - p_k)^γ L_k with p_k = e^{-L_k}: tasks that are nearly solved fade out.

    Liu et al., "MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning", KDD 2024: the focal loss of Lin et
    al. (ICCV 2017) with one probability per task. The paper's p_k is the arithmetic mean of the probabilities of a
    task's tokens. A weighting sees the mean of their logarithms, so p_k is their geometric mean here, which is never
    larger. It is a probability for cross-entropies; for a regression it only maps the loss to (0, 1), and the unit of
    the loss decides how.

    As in a focal loss, the gradient flows through the factor: w_k = (1-p_k)^γ + γ(1-p_k)^(γ-1) p_k L_k.

    Args:
        gamma: γ ≥ 0; 0 is the plain mean.
        scale: "mean" over the present tasks, or "sum".
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses

    def __init__(
        self, tasks: Mapping[str, Task], *, gamma: NonNegativeFloat = 2.0, scale: Literal["sum", "mean"] = "mean"
    ) -> None:
        super().__init__(tasks)
        self.gamma = gamma
        self.scale = scale

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        distance = -torch.expm1(-losses.double())  # 1 - p, exact for small losses
        distance = distance.clamp_min(torch.finfo(torch.float64).tiny)  # at a loss of 0 the weight is 0, not NaN
        focal = distance**self.gamma * losses
        return focal.sum() if self.scale == "sum" else focal.mean()

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        require_positive("focal_task", self.task_names, losses, present, zero=True)
