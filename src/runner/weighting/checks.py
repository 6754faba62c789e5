"""What several weightings refuse: losses without a logarithm, and settings for tasks that do not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runner.errors import Problem, RunFailed, UserError, suggest
from runner.weighting.step import to_host


def require_positive(
    method: str,
    names: Sequence[str],
    losses: Tensor,
    present: Sequence[int] | Tensor,
    hint: str = "",
    zero: bool = False,
    option: str = "",
) -> None:
    """Refuse losses ≤ 0 for a method that divides by them or takes their logarithm.

    Called at the end of a step, when the losses have been looked at anyway: before the optimizer moves anything, and
    without making a GPU wait in front of the backward pass. Losses that are not finite are the engine's to report.

    Args:
        method: the weighting, as it is named on the command line.
        names: of all tasks.
        losses: (k,) of the tasks at the positions `present`.
        hint: what to do, if not the usual.
        zero: whether a loss of 0 is fine.
        option: the setting that needs it, if not the weighting.

    Raises:
        RunFailed: naming the tasks and their losses.
    """
    values = to_host(losses).tolist()
    if all(value > 0 or value != value or (zero and value == 0) for value in values):
        return
    found = zip((names[int(k)] for k in present), values, strict=True)
    tasks = ", ".join(f"'{name}' ({value:.3g})" for name, value in found if value < 0 or (value == 0 and not zero))
    needed = "of 0 or more" if zero else "above 0"
    raise RunFailed(
        f"{option or f'weighting={method}'} needs losses {needed}; not so for task {tasks}",
        hint or "choose another loss for this task, or a weighting that does not depend on the losses' values",
        "runner ls weighting",
    )


def per_task(key: str, values: Mapping[str, float] | None, tasks: Mapping[str, object], default: float) -> Tensor:
    """(K,) float64: the number given for each task, or the default.

    Args:
        key: of the configuration, for messages.

    Raises:
        UserError: a name is not a task of the mixture; all such names at once.
    """
    values = values or {}
    problems = [
        Problem(f"unknown task 'weighting.{key}.{name}'", suggest(name, tasks)) for name in values if name not in tasks
    ]
    if problems:
        raise UserError(problems)
    return torch.tensor([float(values.get(name, default)) for name in tasks], dtype=torch.float64)
