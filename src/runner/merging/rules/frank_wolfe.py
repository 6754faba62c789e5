"""Frank-Wolfe merging without data: a convex combination of experts per tensor (after Chen et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, NonNegativeInt
from runner.merging.blocks import Block
from runner.merging.rules.spectral import MatrixMerge


@dataclass(kw_only=True)
class FrankWolfe(MatrixMerge):
    """Per matrix the point of the experts' convex hull that interferes least with all of them.

    Chen et al., "FW-Merging", ICCV 2025, minimise a loss on data over the hull: the expert most opposed to the gradient
    is found (the linear minimisation oracle, layer-wise as in their section 4), and the merged model moves towards it.
    Here the objective is WUDI's, which needs no data: f(τ) = Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖², and steps are exact line
    searches from the mean; both are ours. As τ = Σ_t c_t τ_t, all happens in T numbers: f = cᵀQc − 2hᵀc with
    Q_ab = ⟨τ_a G, τ_b⟩, h_a = ⟨τ_a, H⟩, G and H as in WUDI. `scale` moves beyond the hull.

    Attributes:
        steps: at most.
        tolerance: of the duality gap, relative to the objective at zero; reached earlier, it stops.
    """

    identities: ClassVar[frozenset[str]] = frozenset({"one", "identical", "permuted", "shift", "base"})

    steps: NonNegativeInt = 200
    tolerance: NonNegativeFloat = 1e-4

    def combine_matrix(self, block: Block) -> Tensor:
        taus = [block.delta(t).mul_(block.weights[t]) for t in range(len(block))]
        shares = self.shares(taus)
        return torch.stack([c * tau for c, tau in zip(shares.tolist(), taus, strict=True)]).sum(0)

    def shares(self, taus: list[Tensor]) -> Tensor:
        """Shares c (T,) of the experts, float64: none negative, 1 together."""
        quadratic, linear = interference(taus)
        c = torch.full((len(taus),), 1 / len(taus), dtype=torch.float64)
        enough = self.tolerance * float(linear.abs().max())
        for _ in range(self.steps):
            gradient = 2 * (quadratic @ c - linear)
            towards = torch.zeros_like(c)
            towards[int(gradient.argmin())] = 1.0
            direction = towards - c
            gap = -float(gradient @ direction)
            if gap <= enough:
                break
            bend = float(direction @ quadratic @ direction)
            c = c + direction * (1.0 if bend <= 0 else min(1.0, gap / (2 * bend)))
        return c


def interference(taus: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Q (T, T) and h (T,) of f(c) = cᵀQc − 2hᵀc, in float64."""
    columns = taus[0].shape[1]
    gram, target = torch.zeros(columns, columns), torch.zeros_like(taus[0])
    for tau in taus:
        norm = float(tau.square().sum(dtype=torch.float64))
        if norm > 0:
            own = tau.T @ tau / norm
            gram += own
            target.addmm_(tau, own)
    moved = [tau @ gram for tau in taus]
    quadratic = torch.tensor([[_dot(a, b) for b in taus] for a in moved], dtype=torch.float64)
    return (quadratic + quadratic.T) / 2, torch.tensor([_dot(tau, target) for tau in taus], dtype=torch.float64)


def _dot(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dtype=torch.float64))
