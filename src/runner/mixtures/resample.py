"""A window of a zoomed image, resampled bilinearly with a low-pass filter where it shrinks, as Pillow does.

PyTorch's bytes are resampled three to four times as fast as Pillow's on a processor with AVX2, by the same arithmetic
with coarser weights: of 1,000 values of a photograph 5 differ by one level of 255, and of a million 3 by two (100, and
1,000, at a zoom such as 1.25, which lands between two levels often). Evaluation, which should give the same everywhere,
stays with Pillow. PyTorch only makes images from their first pixel on: what comes before the window is made as well,
from the last place where old and new pixels begin together, one direction after the other, which keeps that small.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def window(image: Image, grid: tuple[int, int], box: tuple[int, int, int, int], exact: bool = False) -> np.ndarray:
    """(h, w) uint32 with red, green and blue in the three lower bytes; may be read-only.

    Args:
        image: RGB of any size; it is stretched to `grid`, (H, W).
        box: left, top, right, bottom in that grid; not empty.
        exact: as Pillow does, to the last bit.
    """
    width, height = image.size
    if (height, width) == grid:
        return _words(image if box == (0, 0, width, height) else image.crop(box))
    if fast() and not exact:
        return _fast_window(image, grid, box)
    from PIL import Image as Pil

    x, y = width / grid[1], height / grid[0]
    source = (box[0] * x, box[1] * y, min(box[2] * x, width), min(box[3] * y, height))
    return _words(image.resize((box[2] - box[0], box[3] - box[1]), Pil.Resampling.BILINEAR, box=source))


@cache
def fast() -> bool:
    """Whether PyTorch has its own resampling of bytes for this processor."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _words(image: Image) -> np.ndarray:
    """Four bytes a pixel, as Pillow holds them: three would have to be picked apart."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), "<u4").reshape(image.height, image.width)


def _fast_window(image: Image, grid: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    import torch

    left, top, right, bottom = box
    made_left, stored_left, stored_right = _reach(image.width, grid[1], left, right)
    made_top, stored_top, stored_bottom = _reach(image.height, grid[0], top, bottom)
    stored = _words(image.crop((stored_left, stored_top, stored_right, stored_bottom)))
    pixels_HW4 = torch.from_numpy(stored.copy().view(np.uint8).reshape(*stored.shape, 4))
    wide_HW4 = _stretch(pixels_HW4, 1.0, grid[1] / image.width)[:, left - made_left : right - made_left]
    tall_HW4 = _stretch(wide_HW4.contiguous(), grid[0] / image.height, 1.0)[top - made_top : bottom - made_top]
    return tall_HW4.numpy().view("<u4")[..., 0]


def _stretch(pixels_HW4: Tensor, rows: float, columns: float) -> Tensor:
    from torch.nn.functional import interpolate

    zoom = tuple(
        s if s == 1.0 else s + 1e-9 for s in (rows, columns)
    )  # the size is length * s rounded down: never short
    found_14HW = interpolate(
        pixels_HW4[None].permute(0, 3, 1, 2),  # in this order, so that it is known as channels-last
        scale_factor=zoom,
        mode="bilinear",
        antialias=True,
        recompute_scale_factor=False,
    )
    return found_14HW[0].permute(1, 2, 0)


def _reach(length: int, grid: int, first: int, stop: int) -> tuple[int, int, int]:
    """Along one axis: the new pixel to begin with, where it begins, and the stored pixel to end before.

    Args:
        length: stored pixels. grid: new pixels. first, stop: those of the window.
    """
    ratio = length / grid
    support = max(ratio, 1.0) + 1  # half the width of the filter, and one for rounding
    step = grid // math.gcd(grid, length)  # every so many new pixels, old and new ones begin together
    begin = max(int(first + 0.5 - support / ratio), 0) // step * step
    return begin, begin * length // grid, min(math.ceil((stop - 0.5) * ratio + support), length)
