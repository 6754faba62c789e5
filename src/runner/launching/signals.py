"""Stop signals only set a flag; the loop looks at it between steps, saves and leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopFlag:
    """`flag.requested` turns true at the first stop signal; a second SIGINT ends the process the usual way."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a stop signal has arrived."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """`SIGTERM`, or an empty string."""
        return signal.Signals(self.signal).name if self.signal is not None else ""

    def install(self) -> StopFlag:
        """Take over the stop signals of this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._arrived)
        return self

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def quiet_signals() -> Iterator[list[int]]:
    """Collect stop signals in a list instead of dying of them; for a process that watches workers."""
    received: list[int] = []
    previous = {}
    for number in STOP_SIGNALS:
        previous[number] = signal.signal(number, lambda n, _frame: received.append(n))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
