"""MFTCoder's sample-level focal loss (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting


class FocalSample(LossWeighting):
    """total = mean_k Σ_i n_i (1 − p_i)^γ L_i / Σ_i n_i over examples i, p_i = e^{−L_i}: solved examples fade out.

    Liu et al., "MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning", KDD 2024: the focal loss of Lin et al.
    (ICCV 2017) with one probability per sample. L_i is the mean loss over the n_i labelled elements (tokens, pixels) of
    an example, so p_i is the geometric mean of its probabilities, where the paper takes the arithmetic one. For a
    regression p_i only maps the loss to (0, 1), and the unit of the loss decides how.

    As in a focal loss, the gradient flows through the factor. The losses that are reported are the plain ones.

    Args:
        gamma: γ ≥ 0; 0 is the plain mean.
        scale: "mean" over the present tasks, or "sum".
    """

    log_losses: ClassVar[bool] = False  # the logarithm would be of the plain loss, the gradient of the focal one

    def __init__(
        self, tasks: Mapping[str, Task], *, gamma: NonNegativeFloat = 2.0, scale: Literal["sum", "mean"] = "mean"
    ) -> None:
        super().__init__(tasks)
        self.gamma = gamma
        self.scale = scale

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return losses.sum() if self.scale == "sum" else losses.mean()

    @property
    def per_example(self) -> Callable[[Tensor], Tensor]:
        return self.focal

    def focal(self, losses: Tensor) -> Tensor:
        """(1 − e^{−L})^γ L of each loss (n,)."""
        distance = -torch.expm1(-losses)  # 1 − p, exact for small losses
        distance = distance.clamp_min(torch.finfo(losses.dtype).tiny)  # at a loss of 0 the weight is 0, not NaN
        return distance**self.gamma * losses
