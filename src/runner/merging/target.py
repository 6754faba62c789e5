"""Where a merge is written: a folder under a temporary name, held by one process, remembered after a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.files import fsync_directory, write_json
from runner.merging.sources import Models, Source


class Target:
    """The folder that a merge is written into, under its temporary name.

    Args:
        out: the final name, which must not exist (or be an empty folder).
        fingerprint: of inputs and settings.

    Raises:
        UserError: `out` holds something, cannot be written, or another process is at it.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out, self.fingerprint = out, fingerprint
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"'{out}' exists already", "nothing is overwritten: choose another out=DIR")
        self.folder = out.with_name(f".{out.name}.merging")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held as long as this object lives
        except OSError as error:
            raise UserError(f"'{out}' cannot be written: {error.strerror}", "choose another out=DIR") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(f"another process is merging into '{out}'", "wait for it, or choose another out") from error
        known = self._read()
        self.resumed = known.get("fingerprint") == fingerprint
        self.states: list[Any] | None = known.get("states") if self.resumed else None
        try:
            if not self.resumed:
                self._clear()
            write_json(self.folder / "plan.json", {"fingerprint": fingerprint, "states": self.states})
        except OSError as error:
            self._lock.close()
            raise UserError(f"'{out}' cannot be written: {error.strerror}", "choose another out=DIR") from error

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()

    def remember(self, states: list[Any]) -> None:
        """Keep what the strategy's first look found."""
        self.states = states
        write_json(self.folder / "plan.json", {"fingerprint": self.fingerprint, "states": states})

    def publish(self) -> None:
        """Give the folder its final name."""
        for name in ("plan.json", ".lock"):
            (self.folder / name).unlink()
        fsync_directory(self.folder)
        if self.out.exists():
            self.out.rmdir()
        os.rename(self.folder, self.out)
        self._lock.close()
        fsync_directory(self.out.parent)

    def give_up(self) -> None:
        """Leave nothing behind: for merges that cannot succeed."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let another process go on."""
        self._lock.close()


def fingerprint(settings: Mapping[str, Any], models: Models) -> str:
    """A hash of what decides the result: settings, and name, size and time of every input file."""
    files = []
    for source in (*([models.base] if models.base else []), *models.experts.values()):
        for path in files_of(source):
            stat = path.stat()
            files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    text = json.dumps([settings, list(models.names), files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_of(source: Source) -> list[Path]:
    """The weight files that a source reads."""
    inner = [getattr(source, name) for name in ("adapter", "source") if hasattr(source, name)]
    return [*getattr(source, "files", ()), *(path for other in inner for path in files_of(other))]
