"""Subtracting what every task knows: GenKnowSub (Bagherifard et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block


@dataclass(kw_only=True)
class Subtract(TaskVectorMerge):
    """The mean over tasks of their task vector minus that of a general expert, which comes first in `models`.

    Bagherifard et al., "GenKnowSub", 2025: τ_residual = τ_task − amount · τ_general. Differences are those of whole
    updates ΔW; subtracting LoRA factors A and B one by one, as the released code does, is another thing.

    Attributes:
        amount: of the general expert's task vector.
    """

    experts_min: ClassVar[int] = 2
    identities: ClassVar[frozenset[str]] = frozenset({"shift", "base"})

    amount: float = 1.0

    def combine(self, block: Block, state: Any) -> Tensor:
        total = block.delta(1).mul_(block.weights[1])
        for t in range(2, len(block)):
            total.add_(block.delta(t), alpha=block.weights[t])
        total.div_(len(block) - 1)
        return total.sub_(block.delta(0), alpha=self.amount * block.weights[0])
