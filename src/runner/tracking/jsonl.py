"""`metrics.jsonl`: every number of a run, one JSON object per line, only ever appended to.

    {"step": 200, "attempt": 1, "split": "validation", "task": "depth", "metric": "rmse", "value": 0.71}

`task` is "" for numbers of the whole run (learning rate, throughput). Lines are strict JSON: NaN and the infinities,
which JSON does not have, are `null`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunFailed
from runner.files import write_atomic

KEYS = ("step", "attempt", "split", "task", "metric", "value")


class MetricsFile:
    """Appends rows to one file; each call is one write, so that a kill tears at most the last line.

    Args:
        path: the file; it need not exist.
        attempt: number of this attempt at the run, from 1.
        resume_step: the step of the checkpoint this attempt continues from; 0 starts over. Rows that lie after it are
            dropped, because their steps will be done again, and so are those of the test split, which is evaluated
            once, after the last step and again if that was interrupted, and a torn last line.

    Raises:
        RunFailed: the file cannot be written.
    """

    def __init__(self, path: Path, attempt: int, resume_step: int) -> None:
        self.path = path
        self.attempt = attempt
        try:
            _truncate(path, resume_step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise self._failed(error) from error

    def append(self, step: int, split: str, values: Mapping[str, Mapping[str, float]]) -> None:
        """Write one row per value of `values` (task → metric → value).

        Raises:
            RunFailed: the row cannot be written, as on a full disk.
        """
        rows = [
            {"step": step, "attempt": self.attempt, "split": split, "task": task, "metric": metric}
            | {"value": float(value) if math.isfinite(value) else None}
            for task, metrics in values.items()
            for metric, value in metrics.items()
        ]
        try:
            self._file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file; what a full disk does not take any more is lost, the rows before it are not."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunFailed:
        return RunFailed(
            f"cannot write {self.path}: {error.strerror or error}",
            "make room on the disk or mend the permissions, then continue from the last checkpoint",
            f"runner resume {self.path.parent}",
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, also of a run that is going on or was killed: a torn last line is left out.

    Raises:
        ValueError: a line other than the last is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif line.strip(b"\0 \r") and number < len(lines):
            raise ValueError(f"{path}, line {number} is not a row of metrics")
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return row if isinstance(row, dict) and all(key in row for key in KEYS) else None


def _truncate(path: Path, resume_step: int) -> None:
    """Keep whole rows of steps up to `resume_step` but for the final test; the file is left alone where that is all."""
    if not path.exists():
        return
    before = path.read_bytes()
    kept = []
    if resume_step > 0:
        for line in before.splitlines(keepends=True):
            row = _parse(line)
            kept_step = row is not None and row["step"] <= resume_step and row["split"] != "test"
            if kept_step and line.endswith(b"\n"):
                kept.append(line)
    after = b"".join(kept)
    if after != before:
        write_atomic(path, after.decode("utf-8"))
