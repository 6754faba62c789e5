"""WUDI-Merging (Cheng et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeInt, PositiveFloat
from runner.merging.blocks import Block
from runner.merging.rules.spectral import MatrixMerge, summed


@dataclass(kw_only=True)
class Wudi(MatrixMerge):
    """Make the merged task vector interfere as little as possible with each task's inputs, without data.

    Cheng et al., "Whoever Started the Interference Should End It", ICML 2025, eq. 11: the rows of τ_t span the inputs
    that task saw, so per linear layer Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖² is reduced by Adam from τ = Σ_t τ_t.
    With G = Σ_t τ_tᵀτ_t/‖τ_t‖² and H = Σ_t τ_t τ_tᵀτ_t/‖τ_t‖² the gradient is 2(τG − H): neither memory nor time of
    a step depends on T.

    Attributes:
        steps: of Adam.
        lr: its learning rate, in units of weights.
    """

    identities: ClassVar[frozenset[str]] = frozenset({"one", "permuted", "shift", "base"})

    steps: NonNegativeInt = 300
    lr: PositiveFloat = 1e-5

    def combine_matrix(self, block: Block) -> Tensor:
        merged = summed(block)
        gram = torch.zeros(merged.shape[1], merged.shape[1])
        target = torch.zeros_like(merged)
        for t in range(len(block)):
            tau = block.delta(t)
            norm = float(tau.square().sum(dtype=torch.float64))
            if norm > 0:
                own = tau.T @ tau / norm
                gram += own
                target.addmm_(tau, own)
        first, second = torch.zeros_like(merged), torch.zeros_like(merged)
        for step in range(1, self.steps + 1):
            gradient = 2 * (merged @ gram - target)
            if not bool(gradient.any()):
                break
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            size = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            merged = merged - self.lr * first / (1 - 0.9**step) / size
        return merged
