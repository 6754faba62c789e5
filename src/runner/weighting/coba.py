"""CoBa: convergence balancer (Gong et al. 2024), from training losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.bilevel import LookAhead
from runner.weighting.checks import require_positive


class CoBa(LossWeighting):
    """total = Σ_k w_k L_k with w = DF·RCS + (1 - DF)·ACS, from the slopes of the loss curves.

    Gong et al., "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models", EMNLP 2024. With α_k
    the least-squares slope of L_k(s)/L_k(first) over the last N steps:

        RCS = softmax_k(K α_k / Σ_k |α_k|)                       relative: more for tasks that converge slowly
        ACS = softmax_k(-N α_k / Σ_{s in the last N} |α_k(s)|)   absolute: less for tasks that begin to diverge
        DF  = min(1, t·softmax_s(-τ t α_max(s) / Σ_s |α_max(s)|)[t]),  α_max = max_k α_k, s = 1 … t

    DF is 1 while the slowest task still converges and falls towards 0 when one diverges. Weights are equal during the
    first `warmup_steps` steps; t counts from their end.

    The authors' code (MFTCoder) has the same τ, N and W, and departs from the paper's formulas, followed here:
    it takes DF from the slope of the largest loss without the bound of 1, puts the weights through another softmax of
    K times them, and keeps each above 1/(10 K).

    The paper reads the slopes from the losses of a validation batch in every step, one more forward pass. Those of the
    step itself cost nothing; their slopes show divergence of the fit, not over-fitting.

    A task that is absent from a step adds nothing to its curve and keeps its slope; sums and softmaxes over k are those
    of the present tasks. The divergence factor keeps one number per step for ever (0.8 MB in 100 000 steps).

    Args:
        tau: τ > 1, temperature of the divergence factor.
        window: N, length of the history in steps; the paper takes twice the number of validation batches.
        warmup_steps: W; the paper takes the number of validation batches.
        scale: "mean": the weights sum to 1 as in the paper; "sum": to the number of present tasks.
        losses: whose slopes count: of a "validation" batch in each step, or of the step's own batch ("train").
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    first: Tensor
    ratios: Tensor
    slopes: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        tau: PositiveFloat = 5.0,
        window: PositiveInt = 200,
        warmup_steps: PositiveInt = 100,
        scale: Literal["sum", "mean"] = "mean",
        losses: Literal["validation", "train"] = "validation",
    ) -> None:
        super().__init__(tasks)
        self.tau = tau
        self.scale = scale
        self.look_ahead_on = "validation" if losses == "validation" else None
        self.warmup_steps = warmup_steps
        nan = float("nan")
        self.register_buffer("first", torch.full((len(tasks),), nan, dtype=torch.float64))
        # (N, K), the newest row last; NaN where a task was absent or training had not begun
        self.register_buffer("ratios", torch.full((window, len(tasks)), nan, dtype=torch.float64))
        self.register_buffer("slopes", torch.full((window, len(tasks)), nan, dtype=torch.float64))
        self.steepest = torch.zeros(0, dtype=torch.float64)  # α_max of every step since the warm-up
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        """What has no fixed shape: the number of steps, then α_max."""
        return torch.cat([torch.tensor([float(self.steps)], dtype=torch.float64), self.steepest.cpu()])

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.steepest = int(state[0]), state[1:].clone()

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        weights = self.weights(present)
        if self.scale == "sum":
            weights = weights * len(losses)
        return (weights * losses).sum()

    def weights(self, present: Tensor) -> Tensor:
        """(k,) of the present tasks, sum 1."""
        t = len(self.steepest)
        slopes_Nk = self.slopes[:, present]
        # A task without a slope yet (absent so far) is taken for one that stands still.
        now_k = slopes_Nk[-1].nan_to_num()
        if t == 0:
            return torch.softmax(torch.zeros_like(now_k), 0)
        relative = torch.softmax(len(now_k) * _share(now_k, now_k.abs().sum()), 0)
        known_k = (~slopes_Nk.isnan()).sum(0)
        absolute = torch.softmax(-known_k * _share(now_k, slopes_Nk.nan_to_num().abs().sum(0)), 0)
        history = -self.tau * t * _share(self.steepest, self.steepest.abs().sum())
        factor = (t * torch.softmax(history, 0)[-1]).clamp_max(1.0).to(now_k.device)
        return factor * relative + (1 - factor) * absolute

    def look_ahead(self, world: LookAhead) -> None:
        losses, present = world.losses("held_out"), world.present("held_out")
        finite = losses.isfinite()  # a step's own losses that are not are the engine's to report
        self.record(losses[finite], present[finite])

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        if self.look_ahead_on is None:
            self.record(losses, present)

    def record(self, losses: Tensor, present: Tensor) -> None:
        """Add a row to the loss curves and take the slopes again; losses (k,) of the tasks at `present` (k,)."""
        losses = losses.double()
        first = torch.where(self.first[present].isnan(), losses, self.first[present])
        require_positive("coba", self.task_names, first, present)  # all later losses are divided by it
        self.first[present] = first
        row = torch.full_like(self.first, float("nan"))
        row[present] = losses / first
        self.ratios = torch.cat([self.ratios[1:], row[None]])
        self.steps += 1
        if self.steps < self.warmup_steps:
            return
        slopes = fit_slopes(self.ratios)
        slopes = torch.where(row.isnan() | slopes.isnan(), self.slopes[-1], slopes)
        self.slopes = torch.cat([self.slopes[1:], slopes[None]])
        steepest = slopes.nan_to_num(nan=float("-inf")).amax().nan_to_num(neginf=0.0)
        self.steepest = torch.cat([self.steepest.to(steepest.device), steepest[None]])


def fit_slopes(values_NK: Tensor) -> Tensor:
    """(K,) least-squares slope of each column over its row number; NaN rows do not count, fewer than two give NaN."""
    known = ~values_NK.isnan()
    time = torch.arange(len(values_NK), dtype=values_NK.dtype, device=values_NK.device)[:, None] * known
    count = known.sum(0)
    values = values_NK.nan_to_num()
    time = (time - time.sum(0) / count) * known
    return torch.where(count > 1, (time * values).sum(0) / time.square().sum(0), float("nan"))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """The quotient, and 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole, 0.0)
