"""Evaluation: every example of a split once, metrics over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from runner.mixtures.base import Dataset
from runner.mixtures.stream import eval_batches
from runner.randomness import forked_rng
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.training.panels import make_panels
from runner.weighting.step import Reduce, identity

if TYPE_CHECKING:
    from runner.config.schema import TrainerConfig
    from runner.training.assemble import Parts
    from runner.training.processes import Processes

Results = dict[str, dict[str, float]]
"""Task → metric → value; `loss` is the task's mean loss over the split."""


def evaluate(
    model: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    inputs: InputSpec,
    *,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    reduce: Reduce = identity,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    panels: int = 0,
) -> tuple[Results, list[Any]]:
    """Metrics of every task over `datasets`, the same on every rank, and up to `panels` prediction panels (rank 0).

    The model's mode and the global random generators are left as they were; predictions are not kept.
    """
    metrics = {name: task.metrics().to(device) for name, task in tasks.items()}
    totals = torch.zeros(2, len(tasks), dtype=torch.float64, device=device)  # loss sums, counts
    position = {name: k for k, name in enumerate(tasks)}
    shown: list[Any] = []
    with untouched(model), torch.inference_mode():
        for n, dataset in enumerate(datasets.values()):
            wanted = math.ceil((panels - len(shown)) / (len(datasets) - n)) if rank == 0 else 0
            for group in eval_batches(
                dataset,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                num_workers=num_workers,
                pad_token_id=inputs.pad_token_id,
                device=device,
            ):
                on_device = group.to(device)
                with autocast():
                    predictions = model(on_device, [t for t in dataset.tasks if t in on_device.targets])
                for name, prediction in predictions.items():
                    target = on_device.targets[name]
                    totals[0, position[name]] += tasks[name].loss_sum(prediction, target).double()
                    totals[1, position[name]] += tasks[name].loss_count(target).double()
                    metrics[name].update(prediction.float(), target)
                if wanted > 0:
                    made = make_panels(group, predictions, tasks, wanted)
                    shown += made
                    wanted -= len(made)
    reduce(totals)
    results: Results = {}
    for name in tasks:
        loss_sum, count = totals[:, position[name]].tolist()
        results[name] = {"loss": loss_sum / count if count else math.nan}
        results[name] |= {metric: float(value) for metric, value in metrics[name].compute().items()}
    return results, shown


def evaluate_parts(
    model: nn.Module,
    datasets: Mapping[str, Dataset],
    parts: Parts,
    processes: Processes,
    settings: TrainerConfig,
    **changed: Any,
) -> tuple[Results, list[Any]]:
    """`evaluate` with everything as a run has it.

    Args:
        model: of the run, or one made of it. datasets: a split's. parts, processes, settings: of the run.
        changed: keywords of `evaluate` that are otherwise, such as `panels`.
    """
    usual = {
        "batch_size": settings.eval_batch_size or settings.batch_size,
        "num_workers": settings.num_workers,
        "panels": settings.panels,
    }
    return evaluate(
        model,
        parts.tasks,
        datasets,
        parts.inputs,
        device=processes.device,
        rank=processes.rank,
        world_size=processes.count,
        reduce=processes.reduce,
        autocast=processes.accelerator.autocast,
        **(usual | changed),
    )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the model's mode and torch's random numbers are what they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with forked_rng():
        yield
    for module, mode in modes.items():
        module.training = mode
