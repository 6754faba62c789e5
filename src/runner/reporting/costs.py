"""What a run cost: wall time, step time, memory, parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.reporting.baselines import GIVEN
from runner.reporting.read import Run
from runner.reporting.significance import Samples

COSTS = {
    "wall": "wall time",
    "step": "ms/step",
    "memory": "peak MB",
    "parameters": "parameters",
}
"""Cost columns and their headings."""


def costs(result: Mapping[str, Any]) -> dict[str, float]:
    """Seconds, milliseconds a step, MB and number of parameters of one run; what it did not record is left out."""
    parameters = result.get("parameters")
    if isinstance(parameters, Mapping):
        parameters = parameters.get("total")
    steps, train_s = result.get("steps"), result.get("train_s")
    found = {"wall": result.get("wall_s"), "memory": result.get("peak_memory_mb"), "parameters": parameters}
    found["step"] = 1000 * train_s / steps if isinstance(train_s, int | float) and steps else None
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def summed_costs(runs: Sequence[Run]) -> dict[str, Samples]:
    """Cost of one model per task: times and parameters add up, memory is that of the largest."""
    seeds: dict[int | str, list[dict[str, float]]] = {}
    for run in runs:
        seeds.setdefault(run.seed if run.seed is not None else GIVEN, []).append(costs(run.result))
    found: dict[str, dict[int | str, float]] = {}
    for name in COSTS:
        for seed, each in seeds.items():
            if all(name in one for one in each):
                values = [one[name] for one in each]
                found.setdefault(name, {})[seed] = max(values) if name == "memory" else sum(values)
    return dict(found)
