"""Masks per task: TALL masks and Consensus (Wang et al. 2024), EMR (Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.merging.base import Merge, TaskVectorMerge
from runner.merging.blocks import Block, Look, Split
from runner.merging.packing import pack


def total_of(block: Block) -> Tensor:
    """τ_MTL = Σ_t w_t τ_t."""
    total = block.delta(0).mul_(block.weights[0])
    for t in range(1, len(block)):
        total.add_(block.delta(t), alpha=block.weights[t])
    return total


def tall_masks(block: Block, total: Tensor, threshold: float) -> Iterator[Tensor]:
    """m_t = 1[|τ_t| ≥ threshold · |τ_MTL − τ_t|], one expert after the other."""
    for t in range(len(block)):
        tau = block.delta(t)
        yield tau.abs() >= threshold * (total - tau).abs_()


@dataclass(kw_only=True)
class Consensus(TaskVectorMerge):
    """Keep the weights that several tasks select: without selfish and catastrophic ones.

    Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024, eq. 5 and 6:
    θ = θ₀ + scale · 1[Σ_t m_t ≥ agree] ⊙ τ_MTL with TALL masks m_t.

    Attributes:
        threshold: λ of the masks; larger selects fewer weights.
        agree: so many tasks must select a weight (no more than there are).
    """

    threshold: PositiveFloat = 0.4
    agree: PositiveInt = 2
    scale: float = 0.3

    def combine(self, block: Block, state: Any) -> Tensor:
        total = total_of(block)
        votes = torch.zeros_like(total)
        for mask in tall_masks(block, total, self.threshold):
            votes.add_(mask)
        return total.mul_(votes >= min(self.agree, len(block)))


@dataclass(kw_only=True)
class TallMask(Merge):
    """One multi-task vector and a bit per weight and task, from which each expert is nearly restored.

    Wang et al., ICML 2024, eq. 4: θ̂_t = θ₀ + m_t ⊙ τ_MTL. The shared result is θ₀ + τ_MTL, so
    that it can be decoded; without a task it is task arithmetic at scale 1, for which `consensus` is the better choice.

    Attributes:
        threshold: λ of the masks; larger selects fewer weights.
    """

    base_use: ClassVar[Any] = "required"
    averages: ClassVar[bool] = False
    decoder: ClassVar[str | None] = "masked"

    threshold: PositiveFloat = 0.4

    def merge(self, block: Block, state: Any) -> Split:
        total = total_of(block)
        masks = tall_masks(block, total, self.threshold)
        parts = {e: pack(m.reshape(-1), 1) for e, m in zip(block.experts, masks, strict=True)}
        return Split(block.origin + total, parts)

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(experts, 1)

    def scalars(self, name: str, experts: tuple[str, ...], state: Any) -> dict[str, list[float]]:
        return {expert: [1.0] for expert in experts}


@dataclass(kw_only=True)
class Emr(Merge):
    """Elect, mask and rescale: a unified vector, a bit per weight and task, a factor per task.

    Huang et al., "EMR-Merging", NeurIPS 2024, algorithm 1: τ_uni takes per entry the sign of Σ τ_t and the largest
    |τ_t| of that sign; M_t = 1[τ_t · τ_uni > 0]; λ_t = Σ|τ_t| / Σ|M_t ⊙ τ_uni| over the whole model;
    θ̂_t = θ₀ + λ_t M_t ⊙ τ_uni.
    """

    base_use: ClassVar[Any] = "required"
    averages: ClassVar[bool] = False
    decoder: ClassVar[str | None] = "masked"
    reads: ClassVar[int] = 2

    def survey(self, look: Look) -> Any:
        def sums(block: Block) -> list[list[float]]:
            unified = unify(block)
            found = []
            for t in range(len(block)):
                tau = block.delta(t)
                kept = unified.abs() * (tau * unified > 0)
                found.append([float(tau.abs().sum(dtype=torch.float64)), float(kept.sum(dtype=torch.float64))])
            return found

        totals = torch.tensor(look.map(sums), dtype=torch.float64).sum(0)
        return [float(own / kept) if kept > 0 else 1.0 for own, kept in totals.tolist()]

    def merge(self, block: Block, state: Any) -> Split:
        unified = unify(block)
        parts = {}
        for t, expert in enumerate(block.experts):
            parts[expert] = pack((block.delta(t) * unified > 0).reshape(-1), 1)
        return Split(block.origin + unified, parts)

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(experts, 1)

    def scalars(self, name: str, experts: tuple[str, ...], state: Any) -> dict[str, list[float]]:
        return {expert: [value] for expert, value in zip(experts, state, strict=True)}


def unify(block: Block) -> Tensor:
    """τ_uni: the elected sign with the largest agreeing magnitude."""
    total, up, down = (torch.zeros_like(block.models[0]) for _ in range(3))
    for t in range(len(block)):
        tau = block.delta(t).mul_(block.weights[t])
        total.add_(tau)
        torch.maximum(up, tau, out=up)
        torch.minimum(down, tau, out=down)
    return torch.where(total > 0, up, down).mul_(total != 0)
