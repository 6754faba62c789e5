"""Residual blocks and a classifier on one level."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from runner.architectures.distillation import Residual
from runner.architectures.heads.base import Head
from runner.architectures.heads.resize import concatenated, upsample
from runner.config.kinds import NonNegativeInt, PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class BottleneckHead(Head):
    """Bottleneck blocks on the levels, concatenated at the finest one, a 1×1 classifier, upsampling.

    On a single map this is the head that PAD-Net ends with.

    Args:
        channels: width of the blocks, a multiple of 4; None takes that of the finest level.
        blocks: how many.
    """

    kind = "dense"

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        *,
        channels: PositiveInt | None = None,
        blocks: NonNegativeInt = 2,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__()
        self.strides = spec.strides
        width = channels or spec.channels[0]
        widths = [sum(spec.channels), *[width] * blocks]
        self.blocks = nn.Sequential(*(Residual(a, b, norm, bottleneck=True) for a, b in pairwise(widths)))
        self.out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, features: Features) -> Tensor:
        x_BCHW = concatenated(features.pyramid or [], self.strides)
        return upsample(self.out(self.blocks(x_BCHW)), self.strides[0], features.size)
