"""What strategies that need data see: the tasks' inputs, a model to run weights in, and a score to choose by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from runner.mixtures.base import Dataset, Example
from runner.mixtures.stream import eval_batches
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.types import Group

Tensors = Mapping[str, Tensor]
Forward = Callable[[Group, Sequence[str]], dict[str, Tensor]]
"""A model: a group and its tasks → predictions."""


@dataclass
class TaskData:
    """The data of the given tasks, and the model that the weights belong to.

    Attributes:
        model: the architecture with every expert's own head; `forward` runs it with other weights.
        tasks: the tasks; an expert has the name of its task.
        unlabelled: task → examples of the split that may be adapted to, without targets, as one group.
        labelled: task → the same with targets; None for a strategy that did not ask for labels.
        validation: task → examples that choose between results, with targets.
        reference: task → the expert's headline metric on `validation`.
        seed: of the run.
        split: where `unlabelled` and `labelled` come from.
        say: takes a warning for the person who waits.
        check_stop: to be called between steps of long work; raises where the run is to stop.
    """

    model: nn.Module
    tasks: Mapping[str, Task]
    unlabelled: Mapping[str, Group]
    labelled: Mapping[str, Group] | None
    validation: Mapping[str, Group]
    reference: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    split: str = "train"
    say: Callable[[str], None] = lambda text: None
    check_stop: Callable[[], None] = lambda: None

    @property
    def device(self) -> torch.device:
        """Of the model and of all groups."""
        return next(self.model.parameters()).device

    def forward(self, tensors: Tensors, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predictions of the model with other weights; differentiable in them."""
        return torch.func.functional_call(self.model, dict(tensors), (group, tasks))

    def runs(self, tensors: Tensors) -> Forward:
        """The model with these weights."""
        return lambda group, tasks: self.forward(tensors, group, tasks)

    def features(self, tensors: Tensors, group: Group, task: str) -> Tensor:
        """What the task's head reads, as (B, …), with other weights; differentiable in them."""
        seen: list[Tensor] = []
        head = self.model.heads[task]  # type: ignore[index]

        def look(_: nn.Module, arguments: tuple) -> None:
            found = arguments[0]
            seen.append(found.pooled if found.pooled is not None else found.tokens)

        with hooked(head, look):
            self.forward(tensors, group, [task])
        return seen[0]

    def batches(self, task: str, size: int, generator: torch.Generator, labelled: bool = False) -> Iterator[Group]:
        """Endless random batches of a task's examples, reshuffled every pass."""
        source = self.unlabelled if not labelled else self.labelled
        assert source is not None, "the strategy's `needs` does not say labelled"
        group = source[task]
        while True:
            order = torch.randperm(len(group), generator=generator)
            for begin in range(0, len(order) - min(size, len(order)) + 1, size):
                yield take(group, order[begin : begin + size].to(self.device))

    def passes(self, task: str, size: int, labelled: bool = False) -> Iterator[Group]:
        """Every example once, in order."""
        source = self.unlabelled if not labelled else self.labelled
        assert source is not None, "the strategy's `needs` does not say labelled"
        yield from slices(source[task], size)

    def headlines(self, forward: Forward, batch_size: int = 200) -> dict[str, float]:
        """Task → headline metric on the validation examples."""
        return headlines(forward, self.tasks, self.validation, batch_size)

    def score(self, forward: Forward) -> float:
        """Mean over tasks of merged / expert on the validation examples: what coefficients are chosen by."""
        found = self.headlines(forward)
        return sum(retained(self.tasks[t], found[t], self.reference[t]) for t in found) / len(found)


def hooked(module: nn.Module, look: Callable[[nn.Module, tuple], None]) -> _Hook:
    """A context in which `look` sees the inputs of a module."""
    return _Hook(module.register_forward_pre_hook(look))


class _Hook:
    def __init__(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def take(group: Group, rows: Tensor | slice) -> Group:
    """Some examples of a group."""
    return Group(
        group.name, {k: v[rows] for k, v in group.inputs.items()}, {k: v[rows] for k, v in group.targets.items()}
    )


def slices(group: Group, size: int) -> Iterator[Group]:
    """A group in pieces, in order."""
    for begin in range(0, len(group), size):
        yield take(group, slice(begin, begin + size))


def without_targets(group: Group) -> Group:
    """The inputs alone."""
    return Group(group.name, group.inputs)


@torch.no_grad()
def headlines(
    forward: Forward, tasks: Mapping[str, Task], groups: Mapping[str, Group], batch_size: int
) -> dict[str, float]:
    """Task → headline metric of a model on examples in memory."""
    found = {}
    for name, group in groups.items():
        task = tasks[name]
        metrics, loss, count = task.metrics().to(group.targets[name].device), 0.0, 0.0
        for part in slices(group, batch_size):
            prediction = forward(part, [name])[name].float()
            metrics.update(prediction, part.targets[name])
            loss += float(task.loss_sum(prediction, part.targets[name]))
            count += float(task.loss_count(part.targets[name]))
        values = {**metrics.compute(), "loss": loss / count if count else float("nan")}
        found[name] = float(values[task.headline])
    return found


def retained(task: Task, merged: float, expert: float) -> float:
    """Merged / expert for a metric of which more is better, expert / merged for the others."""
    if task.directions.get(task.headline, "down") == "up":
        return merged / expert if expert else float("nan")
    return expert / merged if merged else float("nan")


class Part:
    """Some examples of a data set, for tasks that are a part of its own."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset, self.indices = dataset, indices
        self.name, self.tasks = dataset.name, dataset.tasks

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Example `index` of the part."""
        return self.dataset.example(int(self.indices[index]), rng)


def load_groups(
    datasets: Mapping[str, Dataset],
    tasks: Sequence[str],
    inputs: InputSpec,
    *,
    limit: int | None,
    seed: int,
    device: torch.device,
) -> dict[str, Group]:
    """Task → up to `limit` examples that have its label, drawn with `seed`, in memory as one group with that target.

    Args:
        datasets: of one split.
    """
    found: dict[str, Group] = {}
    for task in tasks:
        dataset = next(d for d in datasets.values() if task in d.tasks)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        indices = np.sort(np.random.default_rng([seed, len(dataset)]).permutation(len(dataset))[:count])
        part = Part(dataset, indices)
        group = next(iter(eval_batches(part, batch_size=count, pad_token_id=inputs.pad_token_id)))
        if task in group.targets:
            found[task] = Group(group.name, group.inputs, {task: group.targets[task]}).to(device)
    return found
