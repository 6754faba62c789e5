"""Helper processes of a worker: deaf to stop signals, and gone when the process that started them is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection, forkserver, resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Sent to whole process groups by terminals and SLURM; only the training process decides what they mean."""


@contextlib.contextmanager
def starting_children() -> Iterator[None]:
    """Around the start of processes: they inherit blocked signals, and so are deaf from their first instruction on."""
    resource_tracker.ensure_running()  # first: starting it unblocks SIGINT and SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_child() -> None:
    """First thing in such a process: ignore stop signals, and end when its parent ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # The process that forks is the fork server, which lives as long as its children: watch the one that asked it.
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
