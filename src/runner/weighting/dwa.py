"""Dynamic weight average (Liu, Johns and Davison 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive
from runner.weighting.epoch_means import EpochMeans


class DWA(LossWeighting):
    """total = Σ_k w_k L_k with w = K·softmax(r/T), r_k = L_k(t-1)/L_k(t-2): slow tasks get more.

    Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, eq. 7. L_k(t) is the mean loss
    over epoch t; r = 1, so equal weights, in the first two epochs. Only ratios of a loss to itself enter: the weights
    do not depend on the losses' scales.

    A task without labels in an epoch keeps its two last means; one that has not been seen in two epochs has r = 1. In
    a step, K and the softmax are those of the present tasks.

    Args:
        T: temperature; the larger the closer to equal weights.
        scale: "sum": the weights sum to the number of present tasks as in the paper; "mean": to 1.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    last: Tensor
    before: Tensor

    def __init__(
        self, tasks: Mapping[str, Task], *, T: PositiveFloat = 2.0, scale: Literal["sum", "mean"] = "sum"
    ) -> None:
        super().__init__(tasks)
        self.T = T
        self.scale = scale
        self.means = EpochMeans(len(tasks))
        for name in ("last", "before"):
            self.register_buffer(name, torch.full((len(tasks),), float("nan"), dtype=torch.float64))

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        means = self.means.begin_step(step, steps_per_epoch)
        if means is not None:
            require_positive(
                "dwa", self.task_names, means, range(len(means)), "the ratio of two of its epochs would be senseless"
            )
            seen = means.isfinite()
            self.before = torch.where(seen, self.last, self.before)
            self.last = torch.where(seen, means, self.last)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        rates = (self.last / self.before)[present]
        weights = torch.softmax(torch.where(rates.isnan(), 1.0, rates) / self.T, 0)
        if self.scale == "sum":
            weights = weights * len(losses)
        return (weights * losses).sum()

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        self.means.add(losses, present)
