"""Non-maximum suppression of edge maps, as the published evaluations do it (Dollár and Zitnick 2015)."""

from __future__ import annotations

import numpy as np

MARGIN = np.float32(1.01)
"""A pixel survives where it is at least 1/1.01 of what lies on either side of it."""

BORDER = 5
"""Pixels along the image's border over which edges fade to zero."""


def suppress(edge_HW: np.ndarray) -> np.ndarray:
    """Keep the ridges of an edge map: (H, W) float32 → (H, W) float32, zero off the ridges.

    Structured Edge Detection Toolbox, `edgesNmsMex(E, O, 1, 5, 1.01)`, which SEISM calls on PASCAL-Context and NYUD:
    the direction across an edge comes from second derivatives of the map, smoothed by a triangle of radius 4; a pixel
    is dropped where the map one pixel further in that direction, or against it, is higher. Maps of less than 3 pixels a
    side have no ridge.

    Args:
        edge_HW: strengths, float32.
    """
    height, width = edge_HW.shape
    kept = np.zeros_like(edge_HW)
    if min(height, width) < 3:
        return kept
    across, along, up = _directions(_smooth(edge_HW))
    # One pixel on in direction (across, ± along) lies among four pixels; the last before the border is not reached.
    across[:, -1] = np.minimum(across[:, -1], np.float32(0.999))
    along[-1] = np.where(up[-1], along[-1], np.minimum(along[-1], np.float32(0.999)))
    above, middle, below = edge_HW[:-2], edge_HW[1:-1], edge_HW[2:]
    ahead, behind = np.where(up, above[:, 1:-1], below[:, 1:-1]), np.where(up, below[:, 1:-1], above[:, 1:-1])
    forward = _between(middle[:, 1:-1], middle[:, 2:], ahead, np.where(up, above[:, 2:], below[:, 2:]), across, along)
    backward = _between(
        middle[:, 1:-1], middle[:, :-2], behind, np.where(up, below[:, :-2], above[:, :-2]), across, along
    )
    own = middle[:, 1:-1] * MARGIN
    np.multiply(middle[:, 1:-1], (own >= forward) & (own >= backward), out=kept[1:-1, 1:-1])
    border = min(BORDER, height // 2, width // 2)
    fade = np.arange(border, dtype=np.float32) / np.float32(border)
    kept[:border] *= fade[:, None]
    kept[-border:] *= fade[::-1, None]
    kept[:, :border] *= fade
    kept[:, -border:] *= fade[::-1]
    return kept


def _directions(smooth_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The direction across the edge of every inner pixel: |cosine|, |sine| and whether it points upwards."""
    dx, dy = _derivative(smooth_HW, 1), _derivative(smooth_HW, 0)
    dxx, dxy, dyy = _derivative(dx, 1), _derivative(dx, 0), _derivative(dy, 0)
    dxx += np.float32(1e-5)
    dyy *= np.sign(dxy)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        slope = np.divide(dyy, dxx)[1:-1, 1:-1]  # tangent of the angle, with its sign turned
        cosine = 1 / np.sqrt(slope * slope + 1)
    return cosine, np.sqrt(np.maximum(1 - cosine * cosine, 0)), slope > 0


def _between(
    a: np.ndarray, a_next: np.ndarray, b: np.ndarray, b_next: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Bilinear interpolation: x of the way from a to a_next, and y of the way to the same point of b."""
    first = a_next - a
    first *= x
    first += a
    second = b_next - b
    second *= x
    second += b
    second -= first
    second *= y
    second += first
    return second


def _derivative(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences, one-sided at the borders."""
    values = values if axis == 0 else values.T
    found = np.empty_like(values)
    np.subtract(values[2:], values[:-2], out=found[1:-1])
    found[1:-1] *= np.float32(0.5)
    found[0], found[-1] = values[1] - values[0], values[-1] - values[-2]
    return found if axis == 0 else found.T


def _smooth(values: np.ndarray) -> np.ndarray:
    """A triangle of radius 4 (two boxes of 5) along both axes; the map is mirrored at its borders."""
    for _ in range(2):
        padded = np.pad(values, ((4, 4), (0, 0)), mode="symmetric")
        for _ in range(2):
            total = padded[:-4] + padded[1:-3]
            for shift in (2, 3, 4):
                total += padded[shift : len(padded) - 4 + shift]
            padded = total
        padded *= np.float32(1 / 25)
        values = np.ascontiguousarray(padded.T)
    return values
