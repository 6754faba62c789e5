"""Selection by variance or importance: SCE (Wan et al. 2024) and Arcee Fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeFloat
from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Unit
from runner.merging.quantile import keep_count


@dataclass(kw_only=True)
class Sce(TaskVectorMerge):
    """Select, calculate, erase.

    Wan et al., "FuseChat", 2024, section 3.3, per tensor: the `density` of entries whose values vary most over the
    experts is selected; expert t is weighted by the sum of squares of its selected entries; entries against the sign
    of the sum are erased; the rest is a weighted mean. Entries as variable as the last selected one are selected too.

    Attributes:
        density: share of entries that is selected.
    """

    unit: ClassVar[Unit] = "tensor"
    neutral: ClassVar[dict[str, Any]] = {"density": 1.0}

    density: Fraction = 0.1

    def combine(self, block: Block, state: Any) -> Tensor:
        deltas = block.deltas()
        if self.density < 1.0 and len(block) > 1:
            variance = deltas.var(0, unbiased=False).view(-1)
            keep = keep_count(self.density, variance.numel())
            threshold = variance.kthvalue(variance.numel() - keep + 1).values
            deltas = deltas * (variance >= threshold).view(deltas.shape[1:])
        flat = deltas.reshape(len(block), -1)
        squares = flat.square().sum(1).double()
        total = float(squares.sum())
        shares = squares / total if total > 0 else torch.full_like(squares, 1 / len(block))
        weights = (shares * torch.tensor(block.weights, dtype=torch.float64)).float()[:, None]
        agree = (flat.sign() == flat.sum(0).sign()) & (flat != 0)
        count = (weights * agree).sum(0)
        mixed = (weights * flat * agree).sum(0) / torch.where(count.abs() < 1e-12, 1.0, count)
        return mixed.view(deltas.shape[1:])


@dataclass(kw_only=True)
class ArceeFusion(TaskVectorMerge):
    """Take over only the changes that stand out (after mergekit's arcee_fusion).

    Importance of an entry is |τ| times the divergence KL(softmax(θ_1 row) ‖ softmax(θ₀ row)); what exceeds
    median + `outlier` · (q75 − q25) of its tensor is taken over, the rest stays the base's.

    Attributes:
        outlier: how far above the middle an importance must lie, in interquartile ranges.
    """

    unit: ClassVar[Unit] = "tensor"
    experts_max: ClassVar[int | None] = 1
    identities: ClassVar[frozenset[str]] = frozenset({"base"})

    outlier: NonNegativeFloat = 1.5

    def combine(self, block: Block, state: Any) -> Tensor:
        tau = block.delta(0).mul_(block.weights[0])
        base = block.origin
        theirs = torch.log_softmax(base + tau, -1) if tau.ndim else torch.zeros(())
        ours = torch.log_softmax(base, -1) if tau.ndim else torch.zeros(())
        divergence = (theirs.exp() * (theirs - ours)).sum(-1, keepdim=True) if tau.ndim else torch.ones(())
        importance = tau.abs() * divergence.clamp_min(0.0)
        low, middle, high = quartiles(importance.reshape(-1))
        return tau * (importance > middle + self.outlier * (high - low))


def quartiles(values: Tensor) -> tuple[float, float, float]:
    """25, 50 and 75 %, linearly interpolated, for vectors of any length."""
    ordered = values.sort().values
    found = []
    for share in (0.25, 0.5, 0.75):
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(float(ordered[low] + (place - low) * (ordered[high] - ordered[low])))
    return found[0], found[1], found[2]
