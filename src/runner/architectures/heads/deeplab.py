"""DeepLabV3+."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from runner.architectures.heads.aspp import ASPP
from runner.architectures.heads.base import Head
from runner.architectures.heads.layers import conv_block
from runner.architectures.heads.resize import upsample
from runner.config.kinds import Fraction, PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features


class DeepLab(Head):
    """ASPP on the coarsest level, joined by the finest one, 3×3 convolutions, classifier, upsampling.

    The decoder of DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611, section 3.1): the coarse features are upsampled to
    the finest level and concatenated with 48 channels of it. The published rates are 6, 12, 18 at output stride 16
    and twice that at 8 (`backbone.output_stride`).
    """

    kind = "dense"

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        *,
        channels: PositiveInt = 256,
        low_channels: PositiveInt = 48,
        rates: list[PositiveInt],
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        if len(spec.channels) < 2:
            raise UserError("the deeplab head needs a pyramid of two levels or more", see="runner ls head")
        self.strides = spec.strides[0], spec.strides[-1]
        self.aspp = ASPP(spec.channels[-1], channels, list(rates), norm, dropout)
        self.low = conv_block(spec.channels[0], low_channels, 1, norm)
        self.decode = nn.Sequential(
            conv_block(channels + low_channels, channels, 3, norm), conv_block(channels, channels, 3, norm)
        )
        self.out = nn.Conv2d(channels, out_channels, 1)

    def forward(self, features: Features) -> Tensor:
        fine, coarse = self.strides
        low_BCHW = self.low(features.pyramid[0])
        deep_BCHW = upsample(self.aspp(features.pyramid[-1]), coarse // fine, low_BCHW.shape[-2:])
        x_BCHW = self.out(self.decode(torch.cat([deep_BCHW, low_BCHW], dim=1)))
        return upsample(x_BCHW, fine, features.size)
