"""TIES-Merging (Yadav et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.base import Block, Look, TaskVectorMerge
from runner.merging.quantile import at_least
from runner.merging.transforms.trim import threshold_at, thresholds


@dataclass(kw_only=True)
class Ties(TaskVectorMerge):
    """Trim, elect signs, merge what agrees.

    Yadav et al., "TIES-Merging", NeurIPS 2023, algorithm 1: the largest `density` of |τ_t| is kept; the sign of
    Σ_t w_t τ_t is elected per entry; entries of that sign are averaged over the experts that have one (disjoint mean),
    or summed. Entries that are exactly at the threshold are kept; where the sum is exactly 0, nothing is elected.

    Attributes:
        density: share of each task vector that is kept.
        scope: whether |τ_t| is ranked over the whole model, as in the paper, or within every tensor.
        aggregate: disjoint "mean" (scale 1) or "sum" (scale about 0.3): different methods.
    """

    reads: ClassVar[int] = 2
    copies: ClassVar[int] = 6
    neutral: ClassVar[dict[str, Any]] = {"density": 1.0}

    density: Fraction = 0.2
    scope: Literal["model", "tensor"] = "model"
    aggregate: Literal["mean", "sum"] = "mean"
    scale: float = 1.0

    def survey(self, look: Look) -> Any:
        return thresholds(look, self.density, self.scope)

    def combine(self, block: Block, state: Any) -> Tensor:
        kept = (at_least(block.delta(t), threshold_at(state, block.name, t)) for t in range(len(block)))
        return elect(kept, block.weights, self.aggregate)


def elect(deltas: Any, weights: Any, aggregate: str) -> Tensor:
    """Sign election and disjoint mean (or sum) in four accumulators, whatever the number of experts.

    Args:
        deltas: trimmed task vectors, one after the other.
        weights: one per expert, counted in the election and in the mean.
        aggregate: "mean" or "sum".
    """
    totals: list[Tensor] = []
    for tau, weight in zip(deltas, weights, strict=True):
        if not totals:
            totals = [torch.zeros_like(tau) for _ in range(4)]
        up, down, count_up, count_down = totals
        if weight < 0:  # the weighted entry decides the sign, the size of its weight how much it counts
            tau = -tau
        up.add_(tau.clamp(min=0.0), alpha=abs(weight))
        down.add_(tau.clamp(max=0.0), alpha=abs(weight))
        if aggregate == "mean":
            count_up.add_(tau > 0, alpha=abs(weight))
            count_down.add_(tau < 0, alpha=abs(weight))
    up, down, count_up, count_down = totals
    sign = (up + down).sign_()
    chosen = torch.where(sign > 0, up, down).mul_(sign != 0)
    if aggregate == "sum":
        return chosen
    count = torch.where(sign > 0, count_up, count_down)
    return chosen.div_(count.clamp_(min=torch.finfo(torch.float32).tiny))
