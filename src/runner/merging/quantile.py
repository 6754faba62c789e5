"""Exact order statistics of a whole model, without sorting it and without holding it.

The k-th largest of N non-negative floats: a sample brackets it, a pass counts what lies above the bracket and makes a
histogram of what lies inside. Non-negative floats are ordered like their bit patterns, and a bracket of a few per cent
spans fewer than a million of them, so the histogram has a bin for every float there is: the result is exact after one
pass, in memory that does not depend on N. A bracket that misses, or one that is too wide, costs another pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from runner.merging.blocks import Block, Look, Unit

BINS = 1 << 21
LARGEST = 0x7F7FFFFF
"""The bit pattern of the largest finite float32."""
_SAMPLE = 1 << 19
_FLUSH = 1 << 20

Values = Callable[[Block], Sequence[Tensor]]
"""A block's non-negative float32 values of every column, flat or shaped."""


def kth_largest(look: Look, values: Values, ranks: Sequence[int], *, unit: Unit = "element") -> list[float]:
    """The k-th largest value of every column over all blocks, k from 1; 0 where k is not below the number of values.

    Args:
        look: the models.
        values: block → one tensor per column.
        ranks: k of each column.
        unit: what `values` needs to see.
    """
    total = look.total
    share = min(1.0, _SAMPLE / max(total, 1))
    brackets = _brackets(look.map(lambda block: list(map(_bits, values(block))), unit=unit, share=share), ranks, total)
    found: list[float | None] = [0.0 if k >= total else None for k in ranks]
    while any(value is None for value in found):
        open_ = [c for c, value in enumerate(found) if value is None]
        counters = {c: _Counter(*brackets[c]) for c in open_}

        def count(block: Block, counters: dict[int, _Counter] = counters) -> None:
            for column, tensor in enumerate(values(block)):
                if column in counters:
                    counters[column].add(_bits(tensor))

        look.map(count, unit=unit)
        for c in open_:
            answer = counters[c].find(ranks[c])
            if isinstance(answer, tuple):
                brackets[c] = answer
            else:
                found[c] = float(np.int32(answer).view(np.float32))
    return [float(value or 0.0) for value in found]


def _bits(values: Tensor) -> np.ndarray:
    """Bit patterns of non-negative float32, as int32; a view."""
    return values.contiguous().view(-1).view(torch.int32).numpy()


def _brackets(sampled: list[list[np.ndarray]], ranks: Sequence[int], total: int) -> list[tuple[int, int]]:
    """For every column a range of bit patterns that very likely holds its k-th largest."""
    brackets = []
    for column, k in enumerate(ranks):
        sample = np.concatenate([row[column] for row in sampled]) if sampled else np.zeros(0, np.int32)
        m = len(sample)
        share = k / max(total, 1)
        # Runs of neighbours are alike, so more than the deviation of independent draws.
        margin = 0.004 + 8 * np.sqrt(share * (1 - min(share, 1.0)) / max(m, 1))
        first, last = int(m * (1 - share - margin)), int(m * (1 - share + margin)) + 1
        wanted = [i for i in (first, last) if 0 <= i < m]
        if wanted:
            sample = np.partition(sample, wanted)
        low = int(sample[first]) if 0 <= first < m else 0
        high = int(sample[last]) if 0 <= last < m else LARGEST
        brackets.append((low, high))
    return brackets


class _Counter:
    """Counts values above a range of bit patterns, and makes a histogram of those inside."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high, self.shift = low, high, 0
        while ((high - low) >> self.shift) >= BINS:
            self.shift += 1
        self.above, self.waiting, self.size = 0, [], 0  # type: ignore[var-annotated]
        self.histogram = np.zeros(((high - low) >> self.shift) + 1, np.int64)
        self._lock = threading.Lock()

    def add(self, bits: np.ndarray) -> None:
        """Count a block."""
        # Two comparisons that run at the speed of memory; few values are inside, and only these are gathered.
        above = int(np.count_nonzero(bits > np.int32(self.high)))
        offsets = (bits - np.int32(self.low)).view(np.uint32)
        inside = offsets[offsets <= np.uint32(self.high - self.low)]
        with self._lock:
            self.above += above
            self.waiting.append(inside >> np.uint32(self.shift))
            self.size += inside.size
            if self.size > _FLUSH:
                self._flush()

    def _flush(self) -> None:
        if self.size:
            counted = np.bincount(np.concatenate(self.waiting), minlength=len(self.histogram))
            self.histogram += counted
        self.waiting, self.size = [], 0

    def find(self, k: int) -> int | tuple[int, int]:
        """The bit pattern of the k-th largest, or the range to look in next."""
        self._flush()
        if self.above >= k:
            return self.high + 1, LARGEST
        from_top = self.above + np.cumsum(self.histogram[::-1])
        if from_top[-1] < k:
            return 0, self.low - 1
        index = len(self.histogram) - 1 - int(np.searchsorted(from_top, k))
        low = self.low + (index << self.shift)
        return low if self.shift == 0 else (low, min(self.high, low + (1 << self.shift) - 1))


def keep_count(density: float, total: int) -> int:
    """How many of `total` values a density keeps: at least one, all at density 1."""
    return max(1, round(density * total))


def at_least(values: Tensor, threshold: float) -> Tensor:
    """`values` where |value| ≥ threshold, else 0."""
    if threshold <= 0.0:
        return values
    below = float(np.nextafter(np.float32(threshold), np.float32(0.0)))
    return torch.nn.functional.hardshrink(values, below)
