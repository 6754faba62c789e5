"""How far a merge is: a line that is rewritten on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Says done, rate and remaining time on standard error."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` elements are written."""
        now = time.perf_counter()
        if now - self._last < (0.2 if self._terminal else 10.0) or not total:
            return
        self._last = now
        spent = now - self._began
        left = spent * (total - done) / max(done, 1)
        remaining = f"{left:.0f} s left" if done > 0.02 * total else "…"
        line = f"merging {100 * done / total:3.0f} %   {done / 1e6:.0f} of {total / 1e6:.0f} M weights   {remaining}"
        if self._terminal:
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
            self._shown = True
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False
