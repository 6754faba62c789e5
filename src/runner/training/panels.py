"""Pictures of what a model sees, should say, and says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from runner.tasks.base import Task
from runner.tracking import Panel
from runner.types import Group


def make_panels(group: Group, predictions: Mapping[str, Tensor], tasks: Mapping[str, Task], limit: int) -> list[Panel]:
    """One panel per example: the input, then target, prediction and error of every task.

    Args:
        group, predictions: on any device; these, dense (B, C, H, W) or (B, C).
    """
    panels = []
    for i in range(min(limit, len(group))):
        rows, errors, legends = [], {}, {}
        for name, prediction in predictions.items():
            task, target = tasks[name], group.targets[name][i].cpu().numpy()
            predicted = prediction[i].float().cpu().numpy()
            if task.kind == "dense":
                rows.append((name, task.render(target, False), task.render(predicted, True)))
                errors[name] = task.error(predicted, target)
                legends[name] = task.legend([task.values(predicted), target]), task.error_legend()
            else:
                rows.append((name, task.describe(target, False), task.describe(predicted, True)))
        panels.append(Panel(id=group.ids[i], input=_input(group, i), rows=rows, errors=errors, legends=legends))
    return panels


def _input(group: Group, i: int) -> np.ndarray | str:
    if "pixels" in group.inputs:
        pixels_3HW = group.inputs["pixels"][i].float().cpu().numpy()
        return (pixels_3HW.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)
    return group.ids[i]
