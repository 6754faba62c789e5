"""Two numbers: the whole model of the toy problem of two objectives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeInt
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec
from runner.types import Features

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
"""The five starts of Navon et al. 2022 (arXiv 2202.01017, figure 1) and Liu et al. 2023 (FAMO)."""


class ToyPoint(Backbone):
    """pooled (B, 2): the same two trainable numbers for every example.

    Args:
        start: where they start: a number for one of the five published starts, or [x1, x2].
    """

    input_kind = "table"
    serves = ("pooled",)

    def __init__(self, inputs: InputSpec, *, start: NonNegativeInt | list[float] = 0) -> None:
        super().__init__()
        if inputs.kind != "table":
            raise UserError(f"this backbone reads tables, the mixture feeds it {inputs.kind}", see="runner ls backbone")
        if isinstance(start, int) and start >= len(STARTS):
            raise UserError(f"backbone.start={start}: there are starts 0 to {len(STARTS) - 1}", "or give [x1, x2]")
        point = list(STARTS[start]) if isinstance(start, int) else [float(x) for x in start]
        if len(point) != 2:
            raise UserError(f"backbone.start={start} must be two numbers", "such as backbone.start=[9,-1]")
        self.point = nn.Parameter(torch.tensor(point))
        self.spec = FeatureSpec(dim=2)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """The point, once per example."""
        return Features(pooled=self.point.expand(len(inputs["numeric"]), 2))

    def trunk_groups(self) -> list[list[nn.Module]]:
        return []

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [[self.point]]
