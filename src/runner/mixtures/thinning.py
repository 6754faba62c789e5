"""Thinning of binary maps to lines one pixel wide.

Guo and Hall 1989, Parallel thinning with two-subiteration algorithms (CACM 32, algorithm A1): a pixel goes if it is on
the border, its removal leaves the same pieces and holes, and it is no end of a line; first those at the south and east,
then those at the north and west, until nothing changes.
"""

from __future__ import annotations

import numpy as np

# Neighbours x1 … x8, counterclockwise from the east, as (row, column) offsets.
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(map_HW: np.ndarray) -> np.ndarray:
    """A boolean map whose lines are one pixel wide; what lies outside the map counts as background."""
    kept = np.pad(map_HW.astype(bool), 1)
    inside = kept[1:-1, 1:-1]
    height, width = inside.shape
    while True:
        before = np.count_nonzero(inside)
        for removable in _REMOVABLE:
            rows, columns = np.nonzero(inside)
            code = np.zeros(len(rows), np.uint8)
            for bit, (down, right) in enumerate(_AROUND):
                code |= kept[rows + 1 + down, columns + 1 + right].astype(np.uint8) << np.uint8(bit)
            gone = removable[code]
            inside[rows[gone], columns[gone]] = False
        if np.count_nonzero(inside) == before:
            return inside.copy().reshape(height, width)


def _table(second: bool) -> np.ndarray:
    """Which of the 256 neighbourhoods let their centre go in the first or the second half of a pass."""
    x = (np.arange(256)[:, None] >> np.arange(8)) & 1 == 1
    x1, x2, x3, x4, x5, x6, x7, x8 = x.T
    crossings = sum((~a & (b | c)).astype(int) for a, b, c in ((x1, x2, x3), (x3, x4, x5), (x5, x6, x7), (x7, x8, x1)))
    first_pairs = sum((a | b).astype(int) for a, b in ((x1, x2), (x3, x4), (x5, x6), (x7, x8)))
    other_pairs = sum((a | b).astype(int) for a, b in ((x2, x3), (x4, x5), (x6, x7), (x8, x1)))
    neighbours = np.minimum(first_pairs, other_pairs)
    side = (x6 | x7 | ~x4) & x5 if second else (x2 | x3 | ~x8) & x1
    return (crossings == 1) & (neighbours >= 2) & (neighbours <= 3) & ~side


_REMOVABLE = (_table(False), _table(True))
