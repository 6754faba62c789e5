"""Two convolutions on the finest level of the pyramid."""

from __future__ import annotations

from torch import Tensor, nn

from runner.architectures.heads.base import Head
from runner.architectures.heads.resize import upsample
from runner.specs import FeatureSpec
from runner.types import Features


class Conv(Head):
    """3×3 and 1×1 convolution without anything in between, then upsampling where the finest level is not the image's.

    The prediction layers of MTAN (Liu et al. 2019, arXiv 1803.10704) on SegNet's last decoder stage. It reads one level
    only, so it suits backbones whose finest level has seen all others: segnet, or plain transformers with
    `backbone.pyramid=last`.
    """

    kind = "dense"

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        self.stride = spec.strides[0]
        width = spec.channels[0]
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, out_channels, 1))

    def forward(self, features: Features) -> Tensor:
        return upsample(self.layers(features.pyramid[0]), self.stride, features.size)
