"""Thinning of many binary maps at once, one bit of a word per map.

The maps of an image's thresholds lie inside one another, so almost everything about them is shared: the pixels of the
largest one are listed once, with two words that say in which of the maps each is on. All maps then take the same steps
together, and only where something can still change.
"""

from __future__ import annotations

import numpy as np

_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""(row, column) of the neighbours x1 … x8: east, then against the clock."""


def thin(bits_N2: np.ndarray, position_N: np.ndarray, stride: int, size: int) -> np.ndarray:
    """Thin until nothing changes, as MATLAB's `bwmorph(…, 'thin', Inf)`; (N, 2) uint64.

    Lam, Lee and Suen 1992, p. 879: two passes in turn delete pixels whose crossing number is 1, that have 2 or 3
    neighbours in the sense of Guo and Hall, and that lie on the pass's side of the line.

    Args:
        bits_N2: per pixel, two uint64 with bit k of the 128 on where the pixel is on in map k.
        position_N: ascending index of every pixel in a map with a border of one pixel.
        stride: of a row of that map. size: its pixels.
    """
    count = len(position_N)
    index = np.full(size, count, np.intp)  # `count` stands for every pixel that is off everywhere
    index[position_N] = np.arange(count)
    around = np.empty((8, count), np.intp)
    for row, (dy, dx) in zip(around, _AROUND, strict=True):
        np.take(index, position_N + (dy * stride + dx), out=row)
    movable = np.zeros(count + 1, bool)
    movable[:count] = _touching(around < count)
    words = np.zeros(count + 1, np.complex128)  # 16 bytes that travel together: much faster than two words
    words[:count] = np.ascontiguousarray(bits_N2).view(np.complex128)[:, 0]
    unsettled = np.stack([movable, movable])
    while unsettled.any():
        for turn in (0, 1):
            pixels = np.flatnonzero(unsettled[turn])
            unsettled[turn, pixels] = False
            own = np.take(words, pixels).view(np.uint64)
            gone = _deletable([np.take(words, np.take(row, pixels)).view(np.uint64) for row in around], turn)
            gone &= own
            changed = np.flatnonzero(gone[0::2] | gone[1::2])
            if len(changed):
                own &= ~gone
                words[pixels] = own.view(np.complex128)
                for row in around:
                    unsettled[:, np.take(row, np.take(pixels, changed))] = True
                unsettled &= movable
    return words[:count].view(np.uint64).reshape(count, 2)


def thin_map(binary_HW: np.ndarray) -> np.ndarray:
    """One binary map (H, W), thinned."""
    padded = np.pad(np.ascontiguousarray(binary_HW, dtype=bool), 1)  # ravel below must be a view
    position = np.flatnonzero(padded)
    bits = np.zeros((len(position), 2), np.uint64)
    bits[:, 0] = 1
    padded.ravel()[position] = thin(bits, position, padded.shape[1], padded.size)[:, 0] != 0
    return padded[1:-1, 1:-1]


def _touching(on_8N: np.ndarray) -> np.ndarray:
    """Pixels with two neighbours that touch: no other pixel has a crossing number of 1 and two neighbours."""
    found = np.zeros(on_8N.shape[1], bool)
    for i in range(8):
        found |= on_8N[i] & on_8N[(i + 1) % 8]
    for i in range(0, 8, 2):
        found |= on_8N[i] & on_8N[(i + 2) % 8]
    return found


def _deletable(x: list[np.ndarray], turn: int) -> np.ndarray:
    """Where the conditions hold, bit by bit.

    Args:
        x: words of the neighbours x1 … x8. turn: 0 or 1, the pass.
    """
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    once, twice, _ = _add(~x1 & (x2 | x3), ~x3 & (x4 | x5), ~x5 & (x6 | x7), ~x7 & (x8 | x1))
    _, two, four = _add(x1 | x2, x3 | x4, x5 | x6, x7 | x8)
    _, also_two, also_four = _add(x2 | x3, x4 | x5, x6 | x7, x8 | x1)
    side = (x2 | x3 | ~x8) & x1 if turn == 0 else (x6 | x7 | ~x4) & x5
    return once & ~twice & two & also_two & ~(four & also_four) & ~side


def _add(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of four bits: at least one, at least two, all four."""
    once, twice = a | b, a & b
    four = twice & c & d
    twice = twice | (once & c)
    once |= c
    twice |= once & d
    once |= d
    return once, twice, four
