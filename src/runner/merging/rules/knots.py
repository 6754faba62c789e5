"""KnOTS (Stoica et al. 2025): merging low-rank experts in a shared basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.blocks import Block
from runner.merging.linalg import thin_svd
from runner.merging.quantile import at_least
from runner.merging.rules.spectral import MatrixMerge
from runner.merging.rules.ties import elect
from runner.merging.transforms.trim import top_threshold


@dataclass(kw_only=True)
class Knots(MatrixMerge):
    """Align task vectors by a joint SVD, then merge what is left of each by a simple rule.

    Stoica et al., "Model Merging with SVD to Tie the Knots", ICLR 2025: [τ_1 … τ_T] = U S [V_1 … V_T]ᵀ side by side;
    the V_t are merged (mean, or TIES), and Δ = scale · U S V_mergedᵀ. Made for LoRA experts, whose directions share
    little.

    Attributes:
        aggregate: "ties" (trim, elect, disjoint mean) or "mean".
        density: share of every V_t that TIES keeps.
    """

    # The order of experts matters only by rounding: it moves entries across the threshold.
    identities: ClassVar[frozenset[str]] = frozenset({"one", "identical", "shift", "base"})
    neutral: ClassVar[dict[str, Any]] = {"density": 1.0}

    aggregate: Literal["ties", "mean"] = "ties"
    density: Fraction = 0.2

    def combine_matrix(self, block: Block) -> Tensor:
        count = len(block)
        u, s, vt = thin_svd(torch.cat([block.delta(t) for t in range(count)], 1))
        kept = s > s[0] * 1e-6
        u, s, vt = u[:, kept], s[kept], vt[kept]
        if not len(s):
            return torch.zeros_like(block.models[0])
        parts = vt.chunk(count, 1)
        if self.aggregate == "mean":
            merged = sum(p * w for p, w in zip(parts, block.weights, strict=True)) / count
        else:
            trimmed = (at_least(p.contiguous(), top_threshold(p.abs(), self.density)) for p in parts)
            merged = elect(trimmed, block.weights, "mean")
        return (u * s) @ merged
