"""Delta-guided fusion: every weight from the experts that moved it most (CoDiEmb, Zhang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block


@dataclass(kw_only=True)
class DeltaGuided(TaskVectorMerge):
    """θ = θ₀ + scale · Σ_t a_t τ_t with a_t = w_t |τ_t| / Σ_s w_s |τ_s|.

    Zhang et al., "CoDiEmb", 2025: checkpoints are fused with weights proportional to each parameter's deviation from
    its initialisation. What a parameter is (an entry, or a tensor with its mean deviation) is a choice here.

    Attributes:
        level: deviations are those of every "entry", or of a whole "tensor" (its mean absolute entry).
    """

    level: Literal["entry", "tensor"] = "entry"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level == "tensor":
            self.unit = "tensor"  # type: ignore[misc]

    def combine(self, block: Block, state: Any) -> Tensor:
        top, bottom = torch.zeros_like(block.models[0]), torch.zeros_like(block.models[0])
        for t in range(len(block)):
            tau = block.delta(t)
            size = tau.abs() if self.level == "entry" else tau.abs().mean().expand_as(tau)
            top.addcmul_(size, tau, value=block.weights[t])
            bottom.add_(size, alpha=block.weights[t])
        return torch.where(bottom.abs() > 0, top / bottom, 0.0)
