"""From an edge map and its truth to the counts that odsF, oisF and AP are made of."""

from __future__ import annotations

from functools import cache

import numpy as np

from runner.tasks.boundaries.matching import by_value, maximum_matchings
from runner.tasks.boundaries.suppression import suppress
from runner.tasks.boundaries.thinning import thin, thin_map

THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32)
"""0.01, 0.02, … 0.99; a pixel is an edge above a threshold."""

OFF, ON, UNKNOWN = 0, 1, 2
"""Values of a truth map."""

_LEVELS = np.array(
    [[(1 << min(level, 64)) - 1, (1 << max(level - 64, 0)) - 1] for level in range(len(THRESHOLDS) + 1)], np.uint64
)
"""Row n: the first n of 128 bits are on."""


def boundary_counts(strength_HW: np.ndarray, truth_HW: np.ndarray, max_dist: float) -> np.ndarray:
    """(3, 99) int64: matched pixels, predicted pixels, true pixels, at each of `THRESHOLDS`.

    The prediction is suppressed to its ridges, cut at each threshold and thinned; the truth is thinned; then both are
    brought into one-to-one correspondence. That is SEISM's evaluation (Pont-Tuset and Marques 2013), with which ATRC,
    InvPT and their successors report edges: the matched pixels divided by the predicted ones are the precision,
    divided by the true ones the recall. Pixels whose truth is unknown are off in both.

    Args:
        strength_HW: uint8, 255 times the probability of an edge, as the published evaluations store it.
        truth_HW: uint8 of `OFF`, `ON`, `UNKNOWN`. Borders that are all unknown are padding: cut off first.
        max_dist: largest distance of two matched pixels, as a share of the image's diagonal.
    """
    rows, columns = (np.flatnonzero((truth_HW != UNKNOWN).any(axis)) for axis in (1, 0))
    counts = np.zeros((3, len(THRESHOLDS)), np.int64)
    if not len(rows):
        return counts
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    strength_HW, truth_HW = strength_HW[window], truth_HW[window]
    height, width = truth_HW.shape
    kept_HW = suppress(strength_HW.astype(np.float32) * np.float32(1 / 255))
    kept_HW[truth_HW == UNKNOWN] = 0
    true_y, true_x = np.nonzero(thin_map(truth_HW == ON))
    counts[2] = len(true_y)

    padded = np.zeros((height + 2, width + 2), np.float32)
    padded[1:-1, 1:-1] = kept_HW
    position = np.flatnonzero(padded.ravel() > THRESHOLDS[0])
    level = np.searchsorted(THRESHOLDS, padded.ravel()[position])
    bits_N2 = thin(_LEVELS[level], position, width + 2, padded.size)
    thinned = np.flatnonzero((bits_N2 != _LEVELS[level]).any(1))
    whole = np.bincount(level, minlength=len(_LEVELS)) - np.bincount(level[thinned], minlength=len(_LEVELS))
    counts[1] = whole[:0:-1].cumsum()[::-1] + _unpack(bits_N2[thinned]).sum(0, dtype=np.int64)

    left = np.flatnonzero(bits_N2[:, 0] | bits_N2[:, 1])
    y, x = np.divmod(position[left], width + 2)
    reach = max_dist * float(np.hypot(height, width))
    predicted, start, neighbour = _neighbours(y - 1, x - 1, true_y, true_x, (height, width), reach)
    counts[0] = maximum_matchings(_unpack(bits_N2[left[predicted]]), start, neighbour, len(true_y))
    return counts


def _unpack(bits_N2: np.ndarray) -> np.ndarray:
    """(N, 99) uint8: the bits of the thresholds."""
    return np.unpackbits(bits_N2.view(np.uint8), axis=1, bitorder="little", count=len(THRESHOLDS))


def _neighbours(
    y: np.ndarray, x: np.ndarray, true_y: np.ndarray, true_x: np.ndarray, shape: tuple[int, int], reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which true pixels lie within reach of which predicted ones.

    Returns:
        The predicted pixels that reach any, as indices of `y`; where each one's neighbours begin, and one past the end;
        the neighbours as indices of `true_y`, the nearest first.
    """
    off_y, off_x = _disc(reach)
    margin = int(reach)
    stride = shape[1] + 2 * margin
    index = np.full((shape[0] + 2 * margin) * stride, -1, np.int32)
    index[(y + margin) * stride + x + margin] = np.arange(len(y), dtype=np.int32)
    found = np.take(index, ((true_y + margin) * stride + true_x + margin) + (off_y * stride + off_x)[:, None])
    ring, truth = np.nonzero(found >= 0)  # rings from the inside out
    pixel = found[ring, truth]
    degree = np.bincount(pixel, minlength=len(y))
    pixels = np.flatnonzero(degree)
    start = np.concatenate([[0], np.cumsum(degree[pixels])])
    return pixels, start, truth[by_value(pixel, len(y))]


@cache
def _disc(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) offsets no longer than `radius`, the shortest first."""
    side = int(radius)
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    squared = y * y + x * x
    inside = squared <= radius * radius
    order = np.argsort(squared[inside], kind="stable")
    return y[inside][order], x[inside][order]
