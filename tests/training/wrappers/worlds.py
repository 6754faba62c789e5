"""A small model, its data, and a step of it under any wrapper and weighting, also split over ranks (threads)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from runner.config.build import build
from runner.config.paths import config_root
from runner.specs import InputSpec
from runner.tasks.classification import Classification
from runner.tasks.regression import Regression
from runner.training.forward import Forward
from runner.training.wrappers.base import Surroundings, Wrapper
from runner.types import Features, Group
from runner.weighting.engine import Engine
from runner.weighting.reach import find_reach
from runner.weighting.step import StepReport, identity

BUILDING = threading.Lock()
CPU = torch.device("cpu")


def option(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """A shipped option with some keys changed."""
    return yaml.safe_load((config_root() / group / f"{name}.yaml").read_text()) | changes


def make_tasks(names: Sequence[str] = ("a", "b", "c")) -> dict[str, Any]:
    """Regressions, the last a classification of three classes."""
    tasks: dict[str, Any] = {name: Regression(name, loss="l2") for name in names[:-1]}
    tasks[names[-1]] = Classification(names[-1], num_classes=3)
    return tasks


class Trunk(nn.Module):
    """(B, 5) → pooled (B, 6), or with `dense` a level (B, 6, 2, 3)."""

    def __init__(self, dense: bool, dropout: float) -> None:
        super().__init__()
        self.dense = dense
        self.layer = nn.Linear(5, 36 if dense else 6)
        self.norm = nn.BatchNorm1d(36 if dense else 6) if dropout else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        z = self.drop(torch.tanh(self.norm(self.layer(inputs["numeric"]))))
        return Features(pyramid=[z.view(-1, 6, 2, 3)], size=(2, 3)) if self.dense else Features(pooled=z)


class Net(nn.Module):
    """One trunk, a bent head per task."""

    representation = "backbone"

    def __init__(self, tasks: dict[str, Any], dense: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = Trunk(dense, dropout)
        self.heads = nn.ModuleDict(
            {k: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, t.out_channels)) for k, t in tasks.items()}
        )

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        features = self.backbone(group.inputs)
        if features.pyramid is not None:
            z = features.pyramid[0].flatten(2).transpose(1, 2)
            return {k: self.heads[k](z).mean(1) for k in tasks}
        return {k: self.heads[k](features.pooled) for k in tasks}

    def all_backbones(self) -> list[nn.Module]:
        return [self.backbone]


def make_group(tasks: dict[str, Any], count: int = 12, seed: int = 0, name: str = "d") -> Group:
    """Labels for all tasks; every third example of the first has none."""
    g = torch.Generator().manual_seed(seed)
    targets: dict[str, Tensor] = {}
    for task, made in tasks.items():
        if isinstance(made, Classification):
            targets[task] = torch.randint(0, made.out_channels, (count,), generator=g)
        else:
            targets[task] = torch.randn(count, generator=g)
    first = next(iter(targets))
    if targets[first].is_floating_point():
        targets[first][::3] = float("nan")
    return Group(name, {"numeric": torch.randn(count, 5, generator=g)}, targets, [str(i) for i in range(count)])


def part(group: Group, rows: Tensor, tasks: Sequence[str] | None = None) -> Group:
    """Some rows, with the targets of some tasks."""
    kept = {k: v[rows] for k, v in group.targets.items() if tasks is None or k in tasks}
    return Group(group.name, {k: v[rows] for k, v in group.inputs.items()}, kept, [group.ids[i] for i in rows])


class World:
    """One process: model, wrapper, weighting, engine."""

    def __init__(
        self,
        tasks: dict[str, Any],
        wrapper: dict[str, Any],
        weighting: dict[str, Any],
        *,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        reduce: Any = identity,
        scale: float = 1.0,
        train_set: Any = None,
        **net: Any,
    ) -> None:
        self.tasks = tasks
        with BUILDING:  # threads share one random generator
            torch.manual_seed(0)
            self.net = Net(tasks, **net)
        self.weighting = build(weighting, tasks)
        self.wrapper = build(wrapper, self.weighting) or Wrapper(self.weighting)  # as the loop does
        self.wrapper.prepare(self.net, tasks, InputSpec("table", num_numeric=5))
        self.wrapper.to(CPU)
        forward = self.wrapper.losses(Forward(self.net, tasks, CPU, nullcontext))
        parameters = list(self.net.parameters())
        self.net.eval()
        probe = self.net(part(make_group(tasks), torch.arange(2)), list(tasks))
        self.net.train()
        self.engine = Engine(
            self.weighting,
            parameters,
            find_reach({k: [v] for k, v in probe.items()}, parameters),
            micro_batches=1 if self.wrapper.one_backward else micro_batches,
            reduce=reduce,
            device=CPU,
            loss_scale=lambda: scale,
            model=self.net,
        )
        self.scale = scale
        inputs = InputSpec("table", num_numeric=5)
        sets = {"d": train_set} if train_set is not None else {}
        self.wrapper.attach(Surroundings(self.net, forward, self.engine, sets, inputs, 4, rank, world_size, reduce))

    def step(self, batches: list[list[Group]], counts: Tensor, number: int = 0) -> tuple[StepReport, dict[str, Tensor]]:
        """Report and unscaled gradients by name, of the parameters that have one."""
        report = self.wrapper.gradients(batches, counts, number, 4)
        grads = {n: p.grad / self.scale for n, p in self.net.named_parameters() if p.grad is not None}
        return report, grads


def counts_of(tasks: dict[str, Any], batches: list[list[Group]]) -> Tensor:
    """(M, K) labels of each micro-batch."""
    return torch.tensor(
        [
            [sum(float(t.loss_count(g.targets[k])) for g in batch if k in g.targets) for k, t in tasks.items()]
            for batch in batches
        ],
        dtype=torch.float64,
    )


class Ranks:
    """Threads that stand for processes: `reduce` adds up what all of them bring."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count)
        self.brought: dict[int, Tensor] = {}

    def reduce_for(self, rank: int) -> Any:
        """The reduction as one rank calls it."""

        def reduce(tensor: Tensor) -> Tensor:
            self.brought[rank] = tensor.detach().clone()
            self.barrier.wait(20)
            total = torch.stack([self.brought[r] for r in range(self.count)]).sum(0)
            self.barrier.wait(20)
            tensor.copy_(total)
            return tensor

        return reduce

    def run(self, work: Any) -> list[Any]:
        """`work(rank, reduce)` on every rank; its results."""
        results: dict[int, Any] = {}

        def one(rank: int) -> None:
            try:
                results[rank] = work(rank, self.reduce_for(rank))
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for rank in range(self.count):
            if isinstance(results[rank], BaseException):
                raise results[rank]
        return [results[rank] for rank in range(self.count)]
