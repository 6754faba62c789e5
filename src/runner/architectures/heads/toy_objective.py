"""The two objectives of the toy problem, as published with CAGrad and Nash-MTL."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from runner.architectures.heads.base import Head
from runner.config.kinds import PositiveFloat
from runner.specs import FeatureSpec
from runner.types import Features

FLOOR = 5e-6
"""Smallest argument of the logarithms."""


def objectives(x_N2: Tensor) -> Tensor:
    """(N, 2) values of both objectives at points (Liu et al. 2021, arXiv 2110.14048, appendix D.1).

    Where x2 > 0 they are log|½(∓x1 … ) ± tanh(-x2)| + 6, a valley with a curved floor; where x2 < 0 they are two
    parabolas with minima at (7, -8) and (-7, -8) of value about -20; tanh(x2 / 2) blends one into the other. The
    Pareto set lies at x2 ≈ -8.36, from x1 = -7 to 7.
    """
    x1, x2 = x_N2.unbind(-1)
    upper, lower = torch.tanh(x2 / 2).clamp_min(0), torch.tanh(-x2 / 2).clamp_min(0)
    bend = torch.tanh(-x2)
    valley_1 = (0.5 * (-x1 - 7) - bend).abs().clamp_min(FLOOR).log() + 6
    valley_2 = (0.5 * (-x1 + 3) + bend + 2).abs().clamp_min(FLOOR).log() + 6
    bowl_1 = ((7 - x1).square() + 0.1 * (x2 + 8).square()) / 10 - 20
    bowl_2 = ((x1 + 7).square() + 0.1 * (x2 + 8).square()) / 10 - 20
    return torch.stack([valley_1 * upper + bowl_1 * lower, valley_2 * upper + bowl_2 * lower], dim=-1)


def pareto_set(points: int = 1001) -> Tensor:
    """(points, 2) points of the Pareto set, float64.

    There both gradients point opposite ways. At x1 between -7 and 7 that fixes x2: the derivative of a convex
    combination of the objectives along x2 vanishes. The blend makes x2 depend on the value of the bowls a little; the
    published pictures take x2 = -8.3552 throughout.
    """
    x1 = torch.linspace(-7, 7, points, dtype=torch.float64)
    return torch.stack([x1, torch.full_like(x1, -8.3552)], dim=1)


class ToyObjective(Head):
    """pooled (B, 2) → (B, 3): the value of one objective, and the point.

    Args:
        objective: which. scale: multiplies it; the papers scale the first by 0.1, so that losses are not comparable.
    """

    kind = "pooled"

    def __init__(
        self, spec: FeatureSpec, out_channels: int, *, objective: Literal[1, 2], scale: PositiveFloat = 1.0
    ) -> None:
        super().__init__()
        if spec.dim != 2 or out_channels != 3:
            raise ValueError(f"this head reads 2 numbers and gives 3, not {spec.dim} and {out_channels}")
        self.objective, self.scale = objective, scale

    def forward(self, features: Features) -> Tensor:
        value_B = self.scale * objectives(features.pooled)[:, self.objective - 1]
        return torch.cat([value_B[:, None], features.pooled], dim=1)
