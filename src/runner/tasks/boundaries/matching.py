"""The one-to-one correspondence of edge pixels at every threshold of an image.

Martin, Fowlkes and Malik 2004, section 3.1 and appendix B (the Berkeley benchmark): an edge pixel of the prediction and
one of the truth may be matched where they are no further apart than maxDist, and each at most once. Its program solves
a minimum-cost assignment (Goldberg's CSA package) in which a match costs its distance and a pixel without a match 100
times maxDist. A match more is therefore worth more than any rearrangement of distances on the way to it (unless that
shifts more than 200 pixels), so the assignment has as many pairs as any correspondence can have. Precision and recall
need no more than that number, where an image has one truth: a maximum-cardinality bipartite matching, which is what is
computed here. (The benchmark's own program connects outliers at random and sometimes gives up a pair or two of
thousands; this does not. With several annotators per image the pairs themselves would count.)
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator

import numpy as np


def maximum_matchings(on_NK: np.ndarray, start: np.ndarray, neighbour: np.ndarray, truths: int) -> np.ndarray:
    """Size of a maximum matching for each of K nested or almost nested sets of predicted pixels; (K,) int64.

    From one set to the next, only the pixels that come and go are looked at. Pixels that come are matched along an
    augmenting path; where there is none, everything the search has seen is closed for good (a Hungarian tree, which no
    later search needs to enter), until a pixel in it goes.

    Args:
        on_NK: uint8, whether predicted pixel n is in set k; sets grow from the last to the first.
        start: (N + 1,) where the neighbours of each predicted pixel begin in `neighbour`.
        neighbour: true pixels within reach, the nearest first.
        truths: number of true pixels.
    """
    count, sets = on_NK.shape
    before = np.zeros((sets + 1, count), np.int8)
    before[1:] = on_NK.T[::-1]
    change = np.diff(before, axis=0)
    when, who = np.nonzero(change)
    came = (change[when, who] > 0).tolist()
    borders = np.searchsorted(when, np.arange(sets + 1)).tolist()
    who = who.tolist()
    sizes = np.empty(sets, np.int64)
    with _no_collection():
        state = _Matching(start, neighbour, truths)
        for k in range(sets):
            events = range(borders[k], borders[k + 1])
            for i in events:
                if not came[i]:
                    state.remove(who[i])
            state.add([who[i] for i in events if came[i]])
            sizes[sets - 1 - k] = state.size
    return sizes


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of lists that hold no cycle: looking for cycles among them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Matching:
    """A maximum matching that is kept while predicted pixels come and go.

    What always holds: a true pixel that is closed is matched, and whatever its partner reaches is closed as well; a
    predicted pixel without a partner reaches closed pixels only. So no augmenting path exists.
    """

    def __init__(self, start: np.ndarray, neighbour: np.ndarray, truths: int) -> None:
        self.reach = _slices(neighbour, start)
        self._edges = start, neighbour
        self.partner = [-1] * len(self.reach)  # of predicted pixels
        self.owner = [-1] * truths  # of true pixels
        self.closed = [False] * truths
        self.seen = [0] * truths
        self.search = 0
        self.present = [False] * len(self.reach)
        self.size = 0
        self._reached_by: list[list[int]] | None = None

    def add(self, pixels: list[int]) -> None:
        """Take predicted pixels in."""
        reach, partner, owner, present = self.reach, self.partner, self.owner, self.present
        for p in pixels:
            present[p] = True
            for g in reach[p]:
                if owner[g] < 0:
                    owner[g] = p
                    partner[p] = g
                    self.size += 1
                    break
            else:
                self._augment(p)

    def _augment(self, p: int) -> None:
        """Look for an augmenting path from p, all of whose true pixels are matched; breadth first."""
        reach, partner, owner, closed, seen = self.reach, self.partner, self.owner, self.closed, self.seen
        self.search += 1
        stamp = self.search
        queue = [g for g in reach[p] if not closed[g]]
        source = dict.fromkeys(queue, p)
        for g in queue:
            seen[g] = stamp
        for h in queue:
            q = owner[h]
            for g in reach[q]:
                if owner[g] < 0:
                    source[g] = q
                    while True:
                        q = source[g]
                        owner[g], partner[q], g = q, g, partner[q]
                        if q == p:
                            self.size += 1
                            return
                if seen[g] != stamp and not closed[g]:
                    seen[g] = stamp
                    source[g] = q
                    queue.append(g)
        for g in queue:
            closed[g] = True

    def remove(self, p: int) -> None:
        """Give up a predicted pixel."""
        self.present[p] = False
        freed = self.partner[p]
        if freed < 0:
            return
        self.partner[p] = self.owner[freed] = -1
        self.size -= 1
        if self.closed[freed]:
            self._replace(freed)

    def _replace(self, freed: int) -> None:
        """Match a closed true pixel again by an alternating path from a predicted pixel without a partner, if any."""
        partner, owner, closed, seen, present = self.partner, self.owner, self.closed, self.seen, self.present
        if self._reached_by is None:
            start, neighbour = self._edges
            pixel = np.repeat(np.arange(len(partner)), np.diff(start))
            begin = np.concatenate([[0], np.cumsum(np.bincount(neighbour, minlength=len(owner)))])
            self._reached_by = _slices(pixel[by_value(neighbour, len(owner))], begin)
        self.search += 1
        stamp = self.search
        seen[freed] = stamp
        queue, after = [freed], {}
        for h in queue:
            for q in self._reached_by[h]:
                if not present[q]:
                    continue
                g = partner[q]
                if g < 0:  # q takes h, whose owner takes what it was reached from, and so on
                    while True:
                        owner[h], partner[q] = q, h
                        if h == freed:
                            self.size += 1
                            return
                        q, h = after[h]
                if closed[g] and seen[g] != stamp:
                    seen[g] = stamp
                    after[g] = (q, h)
                    queue.append(g)
        for g in queue:  # they reach a true pixel without an owner now
            closed[g] = False


def _slices(values: np.ndarray, start: np.ndarray) -> list[list[int]]:
    """The lists that lie behind one another in `values`; list i begins at `start[i]`."""
    flat, begin = values.tolist(), start.tolist()
    return [flat[a:b] for a, b in itertools.pairwise(begin)]


def by_value(values: np.ndarray, limit: int) -> np.ndarray:
    """The stable order of integers below `limit`."""
    return np.argsort(values.astype(np.uint16) if limit <= 2**16 else values, kind="stable")  # 16 bits: a radix sort
