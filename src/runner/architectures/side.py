"""What SAK and VTAGML share: small networks that run beside a backbone's stages and read its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.heads.resize import upsample


class OverChannels(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, …)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def read_stages(backbone: Any, kind: str) -> list[int]:
    """The stages whose states tasks of this kind read; where there is a decoder, dense tasks read its stages.

    Where the last state holds all levels (HRNet), that alone.
    """
    count = len(backbone.stage_channels)
    if getattr(backbone, "last_holds_all", False):
        return [count - 1]
    encoder = count - getattr(backbone, "decoder_stages", 0)
    if kind != "dense":
        return [encoder - 1]
    return list(range(encoder if encoder < count else 0, count))


def resized(y_BCHW: Tensor, like: Tensor) -> Tensor:
    """A map at the size of another stage's: means over cells where that is coarser, bilinear where it is finer."""
    height, width = like.shape[-2:]
    if y_BCHW.shape[-2] > height or y_BCHW.shape[-1] > width:
        factor = round(max(y_BCHW.shape[-2] / height, y_BCHW.shape[-1] / width))
        y_BCHW = F.avg_pool2d(y_BCHW, factor, ceil_mode=True, count_include_pad=False)
    elif y_BCHW.shape[-2:] != like.shape[-2:]:
        y_BCHW = upsample(y_BCHW, -(-height // y_BCHW.shape[-2]), (height, width))
    return y_BCHW


def make_carries(widths: Sequence[int], strides: Sequence[int]) -> nn.ModuleDict:
    """Stage → 1×1 convolution of what comes from the stage before it, where width or resolution change.

    Args:
        widths, strides: of the stages; strides are empty where states are no maps.
    """
    return nn.ModuleDict(
        {
            str(i): nn.Conv2d(widths[i - 1], widths[i], 1)
            for i in range(1, len(widths))
            if strides and (widths[i - 1] != widths[i] or strides[i - 1] != strides[i])
        }
    )
