"""Colours of prediction panels: fixed, so that pictures of different runs can be laid side by side."""

from __future__ import annotations

import numpy as np

from runner.legend import Legend

UNLABELLED = (0, 0, 0)
"""Colour of pixels without a label; no class, depth or direction has it."""

RIGHT, WRONG = (232, 232, 228), (204, 41, 54)
"""Colours of pixels whose class is right or wrong."""

RIGHT_OR_WRONG = Legend(swatches=(("right", RIGHT), ("wrong", WRONG)))

# The first seven are Okabe and Ito's (2008); each later one is the colour farthest from all before it and from black,
# by its distance in OKLab as seen with normal, deuteranope and protanope vision.
_CLASSES = (
    "0072B2E69F00009E73CC79A756B4E9D55E00F0E4429E9E9E78002800FFE74028877858588080FF97CF97B728080048581048B79FCFFF"
    "AFFFA7A7408FEF586800CFC74868DFD7C758A778CF306818BFA770C7DFB7783880870058DF8008A76048709FFF9770979FB79F802000"
    "68DFD7A7E7879F8050604838007078809FC7BF3070A748B7583897CFD700FFDFFF583040"
)
_VIRIDIS = "44015448186A472D7B4240863B528B33638D2C728E26828E21918C1FA08828AE803FBC735EC96284D44BADDC30D8E219FDE725"


def _table(hexadecimal: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(hexadecimal), dtype=np.uint8).reshape(-1, 3)


CLASSES = _table(_CLASSES)
"""(48, 3) uint8, distinct colours of classes 0…47; later classes start again from the first."""

VIRIDIS = _table(_VIRIDIS)
"""(17, 3) uint8, matplotlib's perceptually uniform map at equal steps."""


def classes_to_rgb(label_HW: np.ndarray) -> np.ndarray:
    """Class numbers → (H, W, 3); negative numbers are unlabelled."""
    rgb = CLASSES[np.maximum(label_HW, 0) % len(CLASSES)]
    return np.where((label_HW >= 0)[..., None], rgb, np.uint8(UNLABELLED[0]))


def range_to_rgb(value_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values in [low, high] → (H, W, 3), yellow for low (near) to violet for high (far); NaN is unlabelled."""
    finite = ~np.isnan(value_HW)
    share = np.clip((high - np.where(finite, value_HW, high)) / (high - low), 0.0, 1.0) * (len(VIRIDIS) - 1)
    below = np.floor(share).astype(np.int64)
    above = np.minimum(below + 1, len(VIRIDIS) - 1)
    part = (share - below)[..., None]
    rgb = VIRIDIS[below] * (1 - part) + VIRIDIS[above] * part
    return np.where(finite[..., None], np.rint(rgb), UNLABELLED[0]).astype(np.uint8)


def range_legend(low: float, high: float, unit: str) -> Legend:
    """Of `range_to_rgb`."""
    return Legend(bar=VIRIDIS[::-1], low=f"{low:g}{unit}", high=f"{high:g}{unit}")


def error_to_rgb(error_HW: np.ndarray, high: float) -> np.ndarray:
    """Errors from 0 (violet) to `high` and more (yellow) → (H, W, 3); NaN is unlabelled."""
    return range_to_rgb(high - np.minimum(error_HW, high), 0.0, high)


def error_legend(high: float, unit: str) -> Legend:
    """Of `error_to_rgb`."""
    return Legend(bar=VIRIDIS, low=f"0{unit}", high=f"{high:g}{unit} off")


def right_or_wrong(wrong_HW: np.ndarray, labelled_HW: np.ndarray) -> np.ndarray:
    """(H, W, 3): `RIGHT`, `WRONG`, or unlabelled."""
    return np.where(labelled_HW[..., None], np.where(wrong_HW[..., None], WRONG, RIGHT), UNLABELLED).astype(np.uint8)


def directions_to_rgb(normal_3HW: np.ndarray) -> np.ndarray:
    """Unit vectors → (H, W, 3), each component from -1…1 to 0…255; NaN or no length is unlabelled."""
    known = np.square(normal_3HW).sum(0) > 0
    scaled = np.rint((np.clip(np.nan_to_num(normal_3HW), -1, 1) + 1) * 127.5)
    return np.where(known, scaled, UNLABELLED[0]).transpose(1, 2, 0).astype(np.uint8)


DIRECTIONS = Legend(
    swatches=(("right", (255, 128, 128)), ("left", (0, 128, 128)), ("down", (128, 255, 128)), ("up", (128, 0, 128)),
              ("towards", (128, 128, 0)), ("away", (128, 128, 255))),
)  # fmt: skip
"""Of `directions_to_rgb`, for normals in camera coordinates: x right, y down, z forward."""


def grey_to_rgb(share_HW: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] → (H, W, 3) from near-black to white; NaN is unlabelled, i.e. pure black."""
    known = ~np.isnan(share_HW)
    grey = np.rint(24 + np.clip(np.nan_to_num(share_HW), 0, 1) * (255 - 24))
    return np.repeat(np.where(known, grey, UNLABELLED[0]).astype(np.uint8)[..., None], 3, axis=2)


def grey_legend(low: str, high: str) -> Legend:
    """Of `grey_to_rgb`."""
    return Legend(bar=grey_to_rgb(np.linspace(0, 1, 16)[None])[0], low=low, high=high)
