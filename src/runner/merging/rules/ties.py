"""TIES-Merging (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.errors import Problem
from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Look
from runner.merging.coefficients import table
from runner.merging.quantile import at_least
from runner.merging.transforms.shares import check_share
from runner.merging.transforms.trim import threshold_at, thresholds


@dataclass(kw_only=True)
class Ties(TaskVectorMerge):
    """Trim, elect signs, merge what agrees.

    Yadav et al., "TIES-Merging", NeurIPS 2023, algorithm 1: the largest `density` of |τ_t| is kept; the sign of
    Σ_t w_t τ_t is elected per entry; entries of that sign are averaged over the experts that have one (disjoint mean),
    or summed. Entries that are exactly at the threshold are kept; where the sum is exactly 0, nothing is elected.

    Attributes:
        density: share of each task vector that is kept, of every expert or one per expert.
        density_at: pattern → density of the tensors whose names fit, with scope "tensor"; the first that fits counts.
        scope: whether |τ_t| is ranked over the whole model, as in the paper, or within every tensor.
        aggregate: disjoint "mean" (scale 1) or "sum" (scale about 0.3): different methods.
    """

    reads: ClassVar[int] = 2
    copies: ClassVar[int] = 6
    neutral: ClassVar[dict[str, Any]] = {"density": 1.0}

    density: Fraction | list[Fraction] = 0.2
    density_at: dict[str, Any] | list[list[Any]] | None = None
    scope: Literal["model", "tensor"] = "model"
    aggregate: Literal["mean", "sum"] = "mean"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._density_at = table(self.density_at or {}, "merge.density_at")

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        found = super().check(experts, has_base)
        given = {"merge.density": self.density}
        given |= {f"merge.density_at '{pattern}'": value for pattern, value in self._density_at.items()}
        for where, value in given.items():
            found += check_share(value, len(experts), where)
            if not all(0.0 <= share <= 1.0 for share in ([value] if isinstance(value, int | float) else value)):
                found.append(Problem(f"{where} must be from 0 to 1, not {value}"))
        if self._density_at and self.scope == "model":
            found.append(Problem("merge.density_at needs every tensor ranked by itself", "set merge.scope=tensor"))
        return found

    def survey(self, look: Look) -> Any:
        return thresholds(look, self.density, self.scope, self._density_at)

    def combine(self, block: Block, state: Any) -> Tensor:
        kept = (at_least(block.delta(t), threshold_at(state, block.name, t)) for t in range(len(block)))
        return elect(kept, block.weights, self.aggregate)


def elect(deltas: Iterable[Tensor], weights: Sequence[float], aggregate: str) -> Tensor:
    """Sign election and disjoint mean (or sum) in four accumulators, whatever the number of experts.

    With S = Σ w τ and A = Σ |w τ| the entries of the elected sign sum to (S + sign(S) A) / 2.

    Args:
        deltas: trimmed task vectors, one after the other; they are written to.
        weights: one per expert, counted in the election and in the mean. A negative one turns its task vector round.
        aggregate: "mean" or "sum".
    """
    even = len({abs(w) for w in weights}) == 1 and len(weights) < 256  # then counting needs a byte per entry
    total = size = above = below = None
    for tau, weight in zip(deltas, weights, strict=True):
        if total is None or size is None or above is None or below is None:
            total, size = torch.zeros_like(tau), torch.zeros_like(tau)
            above = torch.zeros(tau.shape, dtype=torch.uint8 if even else torch.float32)
            below = torch.zeros_like(above)
        if aggregate == "mean":
            up, down = (tau > 0, tau < 0) if weight >= 0 else (tau < 0, tau > 0)
            if even:
                above.add_(up.view(torch.uint8))
                below.add_(down.view(torch.uint8))
            else:
                above.add_(up.float(), alpha=abs(weight))
                below.add_(down.float(), alpha=abs(weight))
        total.add_(tau, alpha=weight)
        size.add_(tau.abs_(), alpha=abs(weight))
    assert total is not None and size is not None and above is not None and below is not None
    sign = total.sign()
    chosen = total.add_(size.mul_(sign)).mul_(sign.abs()).mul_(0.5)
    if aggregate == "sum":
        return chosen
    if even:  # bytes are chosen by arithmetic: several times faster than torch.where
        positive = (sign > 0).view(torch.uint8)
        count = above.mul_(positive).add_(below.mul_(1 - positive)).float().mul_(abs(weights[0]))
    else:
        count = torch.where(sign > 0, above, below)
    return chosen.div_(count.clamp_(min=torch.finfo(torch.float32).tiny))
