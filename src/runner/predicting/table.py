"""predictions.csv and predictions.jsonl: written row by row under another name, and renamed when they are whole."""

from __future__ import annotations

import csv
import json
import math
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from runner.errors import RunFailed

FORMATS = ("csv", "jsonl")
GIVEN = "_given"
"""What a column of the input is called besides, where a task has its name."""


class PredictionTable:
    """A file of predictions, one row per input.

    Args:
        folder: made where it is not there. form: of `FORMATS`. columns: in order.
        worded: columns whose lists are words and tags, joined by a space in CSV, not by a semicolon.

    Raises:
        RunFailed: it cannot be written.
    """

    def __init__(self, folder: Path, form: str, columns: Sequence[str], worded: Collection[str] = ()) -> None:
        self._worded = set(worded)
        self.path, self.columns, self._form = folder / f"predictions.{form}", list(columns), form
        self._temporary = folder / f".{self.path.name}.{uuid.uuid4().hex[:8]}"
        self._new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = open(self._temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        self._csv = csv.writer(self._file, lineterminator="\n") if form == "csv" else None
        if self._csv is not None:
            self._row(self.columns)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; columns that it lacks stay empty."""
        if self._csv is not None:
            self._row([plain(row.get(column), " " if column in self._worded else "; ") for column in self.columns])
            return
        found = {column: _json(row[column]) for column in self.columns if column in row}
        try:
            self._file.write(json.dumps(found, ensure_ascii=False) + "\n")
        except OSError as error:
            raise self._failed(error) from error

    def _row(self, values: Sequence[str]) -> None:
        assert self._csv is not None
        try:
            self._csv.writerow(values)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> Path:
        """Give the file its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._failed(error) from error
        return self.path

    def drop(self) -> None:
        """Leave nothing behind, where `finish` was not reached."""
        with suppress(OSError):  # on a full disk, closing fails again at what `write` has said already
            self._file.close()
        self._temporary.unlink(missing_ok=True)
        if self._new and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def _failed(self, error: OSError) -> RunFailed:
        return RunFailed(f"'{self.path}' cannot be written: {error}", "choose another place with --to DIR")


def plain(value: Any, between: str) -> str:
    """A value as CSV has it: nine significant digits, nothing for a missing one, lists in one cell."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, list):
        return between.join(plain(part, between) for part in value)
    return str(value)


def _json(value: Any) -> Any:
    if isinstance(value, list):
        return [_json(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
