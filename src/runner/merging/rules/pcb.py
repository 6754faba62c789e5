"""PCB-Merging: parameter competition balancing (Du et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Look
from runner.merging.quantile import keep_count, kth_largest


@dataclass(kw_only=True)
class Pcb(TaskVectorMerge):
    """Weigh every entry by how much it matters within its task and how well it agrees with the others.

    Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, eq. 3-7: intra-balancing
    exp(T · Norm(|τ_t|)²), inter-balancing tanh(τ_t · Σ_j τ_j); of their product β_t the largest `density` over the
    whole model is kept, scaled to [0, 1], and θ = θ₀ + scale · Σ β̂_t τ_t / Σ β̂_t. Norm scales |τ_t|, clipped at its
    `clip` and 1 − `clip` quantiles, to [0, 1].

    Attributes:
        density: share of entries that is kept.
        clip: share of outliers that is clipped on either side.
        scale: λ; with 1, entries kept by one task alone are that task's.
    """

    reads: ClassVar[int] = 5
    copies: ClassVar[int] = 8
    neutral: ClassVar[dict[str, Any]] = {"density": 1.0, "clip": 0.0}

    density: Fraction = 0.2
    clip: Fraction = 1e-4
    scale: float = 1.2

    def survey(self, look: Look) -> Any:
        count, experts = look.total, len(look.experts)

        clipped = int(self.clip * count)

        def magnitudes(block: Block) -> list[Tensor]:
            sizes = [block.delta(t).abs_() for t in range(experts)]
            return sizes + sizes

        ends = kth_largest(look, magnitudes, [clipped + 1] * experts + [max(count - clipped, 1)] * experts)
        bounds = [[low if clipped else 0.0, high] for high, low in zip(ends[:experts], ends[experts:], strict=True)]
        if self.density >= 1.0:
            return {"bounds": bounds, "floor": None, "top": None}

        def scores(block: Block) -> list[Tensor]:
            found = self._scores(block, bounds)
            positive = [s.clamp(min=0.0) for s in found]
            return positive + positive + [s.neg_().clamp_(min=0.0) for s in found]

        # The k-th largest of signed scores: among the positive ones, or from the other end among the negative ones.
        keep = keep_count(self.density, count)
        ranks = [keep] * experts + [1] * experts + [count - keep + 1] * experts
        ends = kth_largest(look, scores, ranks)
        floors = [ends[t] if ends[t] > 0 else -ends[2 * experts + t] for t in range(experts)]
        return {"bounds": bounds, "floor": floors, "top": ends[experts : 2 * experts]}

    def _scores(self, block: Block, bounds: list[list[float]]) -> list[Tensor]:
        """β_t of every expert."""
        total = torch.zeros_like(block.models[0])
        for t in range(len(block)):
            total.add_(block.delta(t))
        found = []
        for t, (low, high) in enumerate(bounds):
            tau = block.delta(t)
            size = tau.abs().clamp_(low, high).sub_(low).div_(max(high - low, 1e-30))
            found.append(torch.exp(len(block) * size.square_()) * torch.tanh(tau * total))
        return found

    def combine(self, block: Block, state: Any) -> Tensor:
        out, mass = torch.zeros_like(block.models[0]), torch.zeros_like(block.models[0])
        scores = self._scores(block, state["bounds"]) if state["floor"] is not None else None
        for t, (low, high) in enumerate(state["bounds"]):
            tau = block.delta(t)
            clipped = tau.sign() * tau.abs().clamp(low, high)
            if scores is None:
                share = torch.ones_like(tau)
            else:
                floor, top = state["floor"][t], state["top"][t]
                share = scores[t].sub_(floor).div_(max(top - floor, 1e-30)).clamp_(min=0.0)
            out.add_(clipped * share, alpha=block.weights[t])
            mass.add_(share)
        return out.div_(mass.clamp_min_(1e-12))
