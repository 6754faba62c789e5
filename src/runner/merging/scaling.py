"""Running a strategy in the launcher; where it has a scale, the best on validation data is kept, with the curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from runner.config.schema import MergingConfig
from runner.merging.base import DataMerge, Merge, Merged, TaskVectorMerge
from runner.merging.data import TaskData, retained
from runner.merging.memory import line, merge_in_memory
from runner.merging.sources import Models


def merge_with(
    strategy: Merge, models: Models, data: TaskData, settings: MergingConfig, check_stop: Callable[[], None]
) -> tuple[Merged, dict[str, Any]]:
    """Run the strategy; where it has a scale, choose it on validation data.

    The merged task vector is made once, whatever the number of scales: models are not read again.

    Returns:
        The result, and what is to be told of it: the curve over the scale, coefficients.
    """
    data.model.eval()
    base = models.base
    assert base is not None
    if isinstance(strategy, DataMerge):
        data.check_stop = check_stop
        with torch.enable_grad():
            merged = strategy.fit(models, data)
        return merged, {"adapted_on": data.split, **merged.report}
    restored = strategy.decoder is not None and settings.per_task
    if not isinstance(strategy, TaskVectorMerge) or restored or not settings.scales:
        merged = merge_in_memory(strategy, models)
        return merged if restored else Merged(merged.tensors), {}
    direction = line(strategy, models)
    curve = []
    origin = {name: base.whole(name).float() for name in direction}
    for scale in settings.scales:
        check_stop()
        tensors = {name: torch.add(origin[name], tau, alpha=scale) for name, tau in direction.items()}
        found = data.headlines(data.runs(tensors))
        shares = {t: retained(data.tasks[t], found[t], data.reference[t]) for t in found}
        curve.append({"scale": scale, "normalised": sum(shares.values()) / len(shares), "tasks": found})
    best = max(curve, key=lambda point: point["normalised"])
    tensors = {name: torch.add(origin[name], tau, alpha=best["scale"]) for name, tau in direction.items()}
    return Merged(tensors), {"scale": best["scale"], "curve": curve}
