"""STCH: smooth Tchebycheff scalarization (Lin et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeInt, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive
from runner.weighting.epoch_means import EpochMeans


class STCH(LossWeighting):
    """total = K·μ·log Σ_k exp(log(L_k/z_k)/μ), a smooth maximum of the log-losses over their nadirs z.

    Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, in the form in
    which its authors released it for deep multi-task learning (log-losses, factor K, warm-up): until the nadirs are
    known the objective is Σ_k log L_k; z_k is the mean loss over epoch `warmup_epoch`, and the smooth maximum begins
    with the epoch after it. Multiplying a loss by a constant from the start changes no gradient.

    A task without labels in that epoch takes its nadir from the first later epoch in which it has some; until then it
    adds its log L_k outside the maximum. K counts the present tasks in the maximum.

    Args:
        mu: μ, smoothness: small values follow the worst task alone, large ones tend to Σ_k log L_k.
        warmup_epoch: the epoch, counted from 0, that sets the nadirs.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses
    nadir: Tensor

    def __init__(self, tasks: Mapping[str, Task], *, mu: PositiveFloat = 1.0, warmup_epoch: NonNegativeInt = 4) -> None:
        super().__init__(tasks)
        self.mu = mu
        self.warmup_epoch = warmup_epoch
        self.means = EpochMeans(len(tasks))
        self.register_buffer("nadir", torch.full((len(tasks),), float("nan"), dtype=torch.float64))

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        means = self.means.begin_step(step, steps_per_epoch)
        if means is not None and self.means.epoch > self.warmup_epoch:
            self.nadir = torch.where(self.nadir.isnan(), means, self.nadir)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        if len(losses) == 0:
            return losses.sum()
        logs, nadir = losses.double().log(), self.nadir[present]
        known = ~nadir.isnan()
        # Masks rather than indices, and a finite stand-in for -∞: nothing here waits for the device, and no gradient
        # is NaN while nobody has a nadir.
        ratios = torch.where(known, logs - torch.where(known, nadir, 1.0).log(), -1e30)
        maximum = known.sum() * self.mu * torch.logsumexp(ratios / self.mu, 0)
        return maximum + torch.where(known, 0.0, logs).sum()

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        require_positive("stch", self.task_names, losses, present)
        self.means.add(losses, present)
