"""The head of HRNet: all levels concatenated."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from runner.architectures.heads.base import Head
from runner.architectures.heads.layers import conv_block
from runner.architectures.heads.resize import concatenated, upsample
from runner.config.kinds import PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class HRNetHead(Head):
    """Every level at the finest resolution, concatenated, mixed by a 1×1 convolution, classified by another.

    Sun et al. 2019 (HRNetV2), arXiv 1904.04514, figure 3; the head of MTI-Net.

    Args:
        channels: width of the mix; None takes the sum of the levels' channels, as published.
    """

    kind = "dense"

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        *,
        channels: PositiveInt | None = None,
        norm: Literal["batch", "group", "none"] = "batch",
    ) -> None:
        super().__init__()
        self.strides = spec.strides
        width = channels or sum(spec.channels)
        self.mix = conv_block(sum(spec.channels), width, 1, norm)
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: Features) -> Tensor:
        x_BCHW = concatenated(features.pyramid or [], self.strides)
        return upsample(self.out(self.mix(x_BCHW)), self.strides[0], features.size)
