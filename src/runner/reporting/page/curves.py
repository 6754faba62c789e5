"""Curves for the page: what metrics.jsonl holds, thinned until it fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.reporting.read import Run, read_rows

_ROW = re.compile(
    rb'\{"step": (\d+), "attempt": \d+, "split": "(\w+)", "task": "([^"\\]*)", "metric": "([^"\\]*)", "value": ([^}]+)\}'
)
"""A row as `tracking.jsonl` writes it; parsing hundreds of files as JSON would take several times as long."""

TRAIN = ("loss", "weight")
PAIRS = ("cosine", "conflict")
CHARACTERS = 1_300_000
"""Room for all curves of a page."""
PER_NUMBER = 7
MOST, FEWEST = 120, 6
"""Points of a curve, at most and at least."""

Series = dict[tuple[str, str, str], list[tuple[int, float]]]
"""(split, task, metric) → (step, value), in order."""


def read_series(path: Path) -> Series:
    """All series of a run's metrics.jsonl that belong to a task or a pair of tasks."""
    try:
        content = (path / "metrics.jsonl").read_bytes()
    except OSError:
        return {}
    matches = _ROW.findall(content)
    found: Series = {}
    if len(matches) < content.count(b"\n"):  # written by somebody else
        for row in read_rows(path):
            value = row.get("value")
            key = (str(row.get("split")), str(row.get("task") or ""), str(row["metric"]))
            if key[1] and isinstance(row["step"], int):
                number = float(value) if isinstance(value, int | float) else math.nan
                found.setdefault(key, []).append((row["step"], number))
        return found
    raw: dict[tuple[bytes, bytes, bytes], list[tuple[bytes, bytes]]] = {}
    for step, split, task, metric, value in matches:
        raw.setdefault((split, task, metric), []).append((step, value))
    for (split, task, metric), points in raw.items():
        if task:
            key = (split.decode(), task.decode(), metric.decode())
            found[key] = [(int(s), math.nan if v == b"null" else float(v)) for s, v in points]
    return found


def thin(points: Sequence[tuple[int, float]], most: int, *, average: bool) -> list[tuple[int, float]]:
    """At most `most` points, evenly spread and ending with the last one.

    Args:
        average: points stand for the mean of those they replace, at the last of their steps; for noisy curves.
    """
    n = len(points)
    if n <= most:
        return list(points)
    ends = [round((i + 1) * n / most) - 1 for i in range(most)]
    if not average:
        return [points[0], *(points[end] for end in ends[1:])]
    kept, start = [], 0
    for end in ends:
        values = [value for _, value in points[start : end + 1] if math.isfinite(value)]
        kept.append((points[end][0], math.fsum(values) / len(values) if values else math.nan))
        start = end + 1
    return kept


def collect(runs: Mapping[int, Run], tasks: Sequence[str]) -> dict[str, Any]:
    """The curves of a table's runs, and the mean cosine and conflict of every pair of tasks.

    Args:
        runs: number on the page → run. tasks: of the table.

    Returns:
        `grids`: lists of steps; `series`: "split|task|metric" → [[run, grid, values], …]; `pairs`: "cosine" and
        "conflict" → run → "a~b" → mean over the run.
    """
    grids: dict[tuple[int, ...], int] = {}
    series: dict[str, list[list[Any]]] = {}
    pairs: dict[str, dict[int, dict[str, float]]] = {name: {} for name in PAIRS}
    most = 0
    for number, run in runs.items():
        found = read_series(run.path)
        wanted = {key: points for key, points in found.items() if _is_curve(key, tasks)}
        if not most and wanted:
            most = max(FEWEST, min(MOST, CHARACTERS // (PER_NUMBER * len(runs) * len(wanted))))
        for key, points in wanted.items():
            kept = thin(points, most, average=key[0] == "train")
            grid = grids.setdefault(tuple(step for step, _ in kept), len(grids))
            series.setdefault("|".join(key), []).append([number, grid, [short(value) for _, value in kept]])
        for (_, task, metric), points in found.items():
            if metric in PAIRS and "~" in task:
                values = [value for _, value in points if math.isfinite(value)]
                if values:
                    pairs[metric].setdefault(number, {})[task] = round(math.fsum(values) / len(values), 3)
    return {"grids": [list(grid) for grid in grids], "series": series, "pairs": pairs}


def _is_curve(key: tuple[str, str, str], tasks: Sequence[str]) -> bool:
    split, task, metric = key
    return task in tasks and (split == "validation" or (split == "train" and metric in TRAIN))


def short(value: float | None) -> float | int | None:
    """Four significant digits for JSON; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
