"""Task arithmetic (Ilharco et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block


@dataclass(kw_only=True)
class TaskArithmetic(TaskVectorMerge):
    """θ = θ₀ + scale · Σ_t weights_t τ_t.

    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023. Addition with all weights 1; negation of a task
    with weight -1; analogy "A is to B as C is to D" with weights [-1, 1, 1] for A, B, C.
    """

    propagates: ClassVar[bool] = True

    scale: float = 0.3

    def combine(self, block: Block, state: Any) -> Tensor:
        total = block.delta(0).mul_(block.weights[0])
        if block.base is None or block.changes:
            for t in range(1, len(block)):
                total.add_(block.delta(t), alpha=block.weights[t])
            return total
        spare = torch.empty_like(total)
        for t in range(1, len(block)):
            total.add_(torch.sub(block.models[t], block.base, out=spare), alpha=block.weights[t])
        return total
