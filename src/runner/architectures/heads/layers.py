"""Convolution blocks that dense heads are made of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """BatchNorm, GroupNorm of up to 32 groups (Wu and He 2018, arXiv 1803.08494), or nothing."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels // g > 1 or g == 1))
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


def conv_block(before: int, after: int, kernel: int, norm: Norm, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, normalisation, ReLU; it has a bias only without normalisation."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=norm == "none")
    return nn.Sequential(convolution, normalisation(norm, after), nn.ReLU(inplace=True))


def average_bins(x_BCHW: Tensor, bins: int, columns: int | None = None) -> Tensor:
    """(B, C, H, W) → (B, C, bins, columns or bins) means, as `adaptive_avg_pool2d` but as two matrix products.

    Those have a deterministic backward pass on GPUs, which adaptive pooling has not.
    """
    counts = (bins, bins if columns is None else columns)
    height, width = (_bin_matrix(count, side, x_BCHW) for count, side in zip(counts, x_BCHW.shape[-2:], strict=True))
    return height @ x_BCHW @ width.T


def _bin_matrix(bins: int, side: int, like: Tensor) -> Tensor:
    starts = [i * side // bins for i in range(bins)]
    ends = [-(-(i + 1) * side // bins) for i in range(bins)]
    matrix = torch.zeros(bins, side)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix.to(like)
