"""Resizing of feature maps whose cells are aligned at the top left corner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(x_BCHW: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling by a whole factor, then a crop to `size`.

    A map of stride s has ceil(H / s) rows, so that its last row may reach beyond the image. Scaling by the factor and
    cropping keeps every cell over its pixels; stretching to `size`, which is the same where it divides, does not.
    """
    if factor > 1:
        x_BCHW = F.interpolate(x_BCHW, scale_factor=factor, mode="bilinear", align_corners=False)
    return x_BCHW[..., : size[0], : size[1]]


def concatenated(levels: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """All levels at the finest one's resolution, side by side: (B, ΣC, H, W)."""
    size = levels[0].shape[-2:]
    return torch.cat([upsample(x, s // strides[0], size) for x, s in zip(levels, strides, strict=True)], dim=1)
