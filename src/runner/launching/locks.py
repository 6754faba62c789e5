"""Locks on files; they go with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def hold(path: Path) -> IO[str] | None:
    """A lock on a file, which is made if need be with its folder; None where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115 - open as long as it is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        return None


def held(path: Path) -> bool:
    """Whether a process holds it now."""
    file = hold(path)
    if file is None:
        return True
    file.close()
    return False
