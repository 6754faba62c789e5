"""A run against its baseline: what goes into result.json and what a person is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.files import read_json
from runner.reporting.delta_m import RULES, Results, delta_m
from runner.reporting.given import read_baseline
from runner.tasks.base import Task


def compare(
    config: Mapping[str, Any],
    needs: list[Mapping[str, Any]],
    results: Results,
    tasks: Mapping[str, Task],
    split: str,
) -> dict[str, Any]:
    """`baseline`, `baseline_from` and `delta_m` of a result; empty where the run has no baseline.

    Args:
        config: the run's configuration.
        needs: `needs` of its run.json: the runs it was given, with their paths.
        results: task → metric → value on `split`.
        tasks: the run's tasks.

    Raises:
        UserError: a given baseline cannot be read.
    """
    given = config.get("baseline")
    if given in (None, "none"):
        return {}
    if given == "auto":
        numbers: dict[str, dict[str, float]] = {}
        for need in needs:
            if need["role"] == "baseline" and need["path"]:
                found = read_json(Path(need["path"]) / "result.json")
                numbers |= {task: _finite(found["tasks"][task]) for task in need["tasks"]}
        source = "single-task runs"
    else:
        numbers = read_baseline(given, list(tasks), split)
        source = given if isinstance(given, str) else "the configuration"
    if set(numbers) != set(tasks):  # a single-task run has failed, or there is only one task
        return {}
    deltas = {
        name: delta_m(
            name,
            {task: _finite(metrics) for task, metrics in results.items()},
            numbers,
            {name: {**task.directions, "loss": "down"} for name, task in tasks.items()},
            headlines={name: task.headline for name, task in tasks.items()},
        )
        for name in RULES
    }
    return {
        "baseline": numbers,
        "baseline_from": source,
        "delta_m": {name: value.value if math.isfinite(value.value) else None for name, value in deltas.items()},
        "delta_m_tasks": {
            name: {task: part if math.isfinite(part) else None for task, part in value.tasks.items()}
            for name, value in deltas.items()
        },
    }


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Without the metrics that have no value."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
