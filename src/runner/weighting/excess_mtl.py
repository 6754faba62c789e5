"""ExcessMTL: weights that follow the excess risk (He et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeInt, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.base import MatrixWeighting
from runner.weighting.buffer import combine_rows, in_columns


class ExcessMTL(MatrixWeighting):
    """More weight for tasks far from what they can reach, not for those whose labels are noisy.

    He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024, eq. 6, 7 and 9: the excess risk of a task is
    estimated by gᵀH⁻¹g with H = diag(√Σ_t g_t²), divided by its value during the warm-up, and
    w_k ← w_k·exp(η·ratio_k), normalised. The sums of squares (K×P floats), baselines and weights are part of the
    checkpoint.

    Args:
        robust_step_size: η.
        warm_up: epochs with equal weights whose mean excess risk is the baseline (appendix C.1); 0: the first step.
        heads: weights are those of the losses; "unweighted" leaves task-specific parameters on their plain loss.
        scale: "paper" is weights that sum to 1.
        shared: see `MatrixWeighting`.
    """

    per_parameter: ClassVar[tuple[str, ...]] = ("squares",)
    squares: Tensor
    logits: Tensor
    baseline_sum: Tensor
    baseline_steps: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        robust_step_size: PositiveFloat = 1.0,
        warm_up: NonNegativeInt = 3,
        heads: Literal["weighted", "unweighted"] = "weighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.robust_step_size = robust_step_size
        self.warm_up = warm_up
        self.warming = False
        for name in ("logits", "baseline_sum", "baseline_steps"):
            self.register_buffer(name, torch.zeros(len(tasks)))

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        self.warming = step < self.warm_up * steps_per_epoch

    def combine(self, grads_kP: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tiny = torch.finfo(losses.dtype).tiny
        excess = torch.zeros_like(losses)
        for row, k in enumerate(present.tolist()):
            for grad, squares in zip(in_columns(grads_kP[row]), in_columns(self.squares[k]), strict=True):
                squares.addcmul_(grad, grad)
                excess[row] += torch.dot(grad, grad / squares.sqrt().clamp_min_(tiny))
        new = self.baseline_steps[present] == 0
        learning = new | self.warming
        self.baseline_sum[present] += torch.where(learning, excess, 0.0)
        self.baseline_steps[present] += learning.float()
        baseline = self.baseline_sum[present] / self.baseline_steps[present]
        ratio = torch.where(baseline > 0, excess / baseline.clamp_min(tiny), 0.0)
        if not self.warming:
            logits = self.logits[present] + self.robust_step_size * ratio
            # A common shift changes no weight, but left alone it would eat the precision of float32.
            self.logits[present] = logits
            self.logits -= self.logits.max()
        weights = self.logits[present].softmax(0)
        return (
            combine_rows(weights, grads_kP),
            weights,
            weights if self.heads == "weighted" else torch.ones_like(weights),
        )
