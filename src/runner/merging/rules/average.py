"""Averages of weights: model soups (Wortsman et al. 2022), plain or weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from runner.merging.base import Merge
from runner.merging.blocks import Block


@dataclass(kw_only=True)
class Average(Merge):
    """θ = Σ_t weights_t θ_t; by default the mean.

    Wortsman et al., "Model soups", ICML 2022 (the uniform soup). Weights are taken as they are: `normalize` divides
    them by their sum.
    """

    propagates: ClassVar[bool] = True

    def merge(self, block: Block, state: Any) -> Tensor:
        # Around the first model, so that the mean of identical models is that model exactly.
        first, weights = block.model(0), block.weights
        total = first * sum(weights)
        for t in range(1, len(block)):
            total.add_(block.model(t) - first, alpha=weights[t])
        return total
