"""DeepLabV3's head: atrous spatial pyramid pooling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from runner.architectures.heads.base import Head
from runner.architectures.heads.layers import Norm, conv_block
from runner.architectures.heads.resize import upsample
from runner.config.kinds import Fraction, PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1 convolution, dilated 3×3 ones and the image's mean, concatenated.

    Chen et al. 2017, arXiv 1706.05587, section 3.3. Where the branch of the mean has no normalisation (`whole_norm`),
    a batch of one image can be trained with BatchNorm elsewhere.
    """

    def __init__(
        self, before: int, channels: int, rates: list[int], norm: Norm, dropout: float, whole_norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.local = nn.ModuleList(
            [conv_block(before, channels, 1, norm), *(conv_block(before, channels, 3, norm, rate) for rate in rates)]
        )
        self.whole = conv_block(before, channels, 1, whole_norm)
        self.project = nn.Sequential(conv_block((2 + len(rates)) * channels, channels, 1, norm), nn.Dropout(dropout))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        whole_BC11 = self.whole(x_BCHW.mean((-2, -1), keepdim=True))
        branches = [branch(x_BCHW) for branch in self.local]
        return self.project(torch.cat([*branches, whole_BC11.expand_as(branches[0])], dim=1))


class ASPPHead(Head):
    """ASPP on the coarsest level, a 3×3 convolution, classifier, upsampling (Chen et al. 2017, arXiv 1706.05587).

    The head of torchvision's DeepLabV3, and of LibMTL's NYUv2 benchmark, which calls it DeepLabV3+: 71.89 M parameters
    with ResNet-50 and three tasks. The published rates are 6, 12, 18 at output stride 16 and twice that at 8
    (`backbone.output_stride`).
    """

    kind = "dense"

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        *,
        channels: PositiveInt = 256,
        rates: list[PositiveInt],
        norm: Literal["batch", "group", "none"] = "batch",
        whole_norm: bool = False,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        self.stride = spec.strides[-1]
        self.aspp = ASPP(spec.channels[-1], channels, list(rates), norm, dropout, norm if whole_norm else "none")
        self.decode = conv_block(channels, channels, 3, norm)
        self.out = nn.Conv2d(channels, out_channels, 1)

    def forward(self, features: Features) -> Tensor:
        x_BCHW = self.out(self.decode(self.aspp(features.pyramid[-1])))
        return upsample(x_BCHW, self.stride, features.size)
