"""Curves for the page: what metrics.jsonl holds, thinned until it fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.reporting.read import Run, read_rows

_HEAD = rb'\{"step": (\d+), "attempt": \d+, "split": '
_TAIL = rb', "value": ([^}]+)\}'
_VALIDATION = re.compile(_HEAD + rb'"validation", "task": "([^"\\]+)", "metric": "([^"\\]+)"' + _TAIL)
_TRAIN = re.compile(_HEAD + rb'"train", "task": "([^"\\]+)", "metric": "(loss|weight|cosine|conflict)"' + _TAIL)
"""Rows as `tracking.jsonl` writes them; parsing hundreds of files as JSON would take several times as long."""

TRAIN = ("loss", "weight")
PAIRS = ("cosine", "conflict")
CHARACTERS = 1_100_000
"""Room for all curves of a page."""
PER_NUMBER = 7
MOST, FEWEST = 120, 6
"""Points of a curve, at most and at least."""

Points = tuple[list[int], list[float]]
"""Steps and values, in order."""
Key = tuple[str, str, str]
"""(split, task, metric)."""


def read_series(path: Path) -> dict[Key, Points]:
    """The series of a run's metrics.jsonl that the page shows: of tasks, and of pairs of tasks."""
    try:
        content = (path / "metrics.jsonl").read_bytes()
    except OSError:
        return {}
    if not content.startswith(b'{"step": ') or b"\\" in content:
        return _read_any(path)  # written by somebody else, or with names that need decoding
    raw: dict[tuple[str, bytes, bytes], tuple[list[bytes], list[bytes]]] = {}
    for split, pattern in (("validation", _VALIDATION), ("train", _TRAIN)):
        for step, task, metric, value in pattern.findall(content):
            key = (split, task, metric)
            steps, values = raw.get(key) or raw.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)
    return {
        (split, task.decode(), metric.decode()): (list(map(int, steps)), _floats(values))
        for (split, task, metric), (steps, values) in raw.items()
    }


def _floats(values: list[bytes]) -> list[float]:
    if b"null" in values:
        return [math.nan if value == b"null" else float(value) for value in values]
    return list(map(float, values))


def _read_any(path: Path) -> dict[Key, Points]:
    found: dict[Key, Points] = {}
    for row in read_rows(path):
        key, value = (str(row.get("split")), str(row.get("task") or ""), str(row["metric"])), row.get("value")
        if key[1] and isinstance(row["step"], int) and (key[0] == "validation" or key[2] in (*TRAIN, *PAIRS)):
            steps, values = found.setdefault(key, ([], []))
            steps.append(row["step"])
            values.append(float(value) if isinstance(value, int | float) else math.nan)
    return found


def thin(points: Points, most: int, *, average: bool) -> Points:
    """At most `most` points, evenly spread, the last one kept.

    Args:
        average: a point is the mean of those it stands for, at the last of their steps; for noisy curves.
    """
    steps, values = points
    n = len(steps)
    if n <= most:
        return points
    ends = [round((i + 1) * n / most) - 1 for i in range(most)]
    if not average:
        ends[0] = 0
        return [steps[end] for end in ends], [values[end] for end in ends]
    starts = [0, *(end + 1 for end in ends)]
    return [steps[end] for end in ends], [_mean(values[a:b]) for a, b in pairwise(starts)]


def _mean(values: Sequence[float]) -> float:
    total = sum(values)
    if not math.isfinite(total):
        values = [value for value in values if math.isfinite(value)]
        total = sum(values)
    return total / len(values) if values else math.nan


def collect(runs: Mapping[int, Run], tasks: Sequence[str]) -> dict[str, Any]:
    """The curves of a table's runs, and the mean cosine and conflict of every pair of tasks.

    Args:
        runs: number on the page → run. tasks: of the table.

    Returns:
        `grids`: lists of steps; `series`: "split|task|metric" → [[run, grid, values], …]; `pairs`: "cosine" and
        "conflict" → run → "a~b" → mean over the run.
    """
    kept: dict[Key, dict[int, Points]] = {}
    pairs: dict[str, dict[int, dict[str, float]]] = {name: {} for name in PAIRS}
    for number, run in runs.items():
        for key, points in read_series(run.path).items():
            split, task, metric = key
            if task in tasks and metric not in PAIRS:
                kept.setdefault(key, {})[number] = thin(points, MOST, average=split == "train")
            elif metric in PAIRS and "~" in task and math.isfinite(mean := _mean(points[1])):
                pairs[metric].setdefault(number, {})[task] = round(mean, 3)
    curves = sum(len(by_run) for by_run in kept.values())
    most = max(FEWEST, min(MOST, CHARACTERS // PER_NUMBER // max(1, curves)))
    grids: dict[tuple[int, ...], int] = {}
    series: dict[str, list[list[Any]]] = {}
    for key, by_run in kept.items():
        for number, points in by_run.items():
            steps, values = thin(points, most, average=key[0] == "train")
            grid = grids.setdefault(tuple(steps), len(grids))
            series.setdefault("|".join(key), []).append([number, grid, [short(value) for value in values]])
    return {"grids": [list(grid) for grid in grids], "series": series, "pairs": pairs}


def short(value: float | None) -> float | int | None:
    """Four significant digits for JSON; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
