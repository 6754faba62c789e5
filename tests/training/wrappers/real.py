"""Real architectures under a wrapper that adds a loss: a tiny one, its data, steps of it, also split over ranks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from runner.config.build import build
from runner.mixtures.base import Example
from runner.specs import InputSpec
from runner.tasks.depth import Depth
from runner.tasks.segmentation import Segmentation
from runner.training.forward import Forward
from runner.training.wrappers.base import Surroundings, Wrapper
from runner.types import Group, everything
from runner.weighting.engine import Engine
from runner.weighting.reach import find_reach
from runner.weighting.step import StepReport, identity
from tests.architectures.worlds import make
from tests.training.wrappers.worlds import CPU, Ranks, counts_of, option, part

TASKS = {"segmentation": Segmentation("segmentation", num_classes=3), "depth": Depth("depth")}


def data(count: int = 4, size: tuple[int, int] = (32, 32), seed: int = 0) -> Group:
    """Images with a segmentation and a depth of every pixel."""
    g = torch.Generator().manual_seed(seed)
    targets = {
        "segmentation": torch.randint(0, 3, (count, *size), generator=g),
        "depth": 1 + torch.rand(count, 1, *size, generator=g),
    }
    return Group("d", {"pixels": torch.rand(count, 3, *size, generator=g)}, targets, [str(i) for i in range(count)])


class Scenes:
    """Training examples, for wrappers that look at some."""

    name, tasks = "d", ("segmentation", "depth")

    def __len__(self) -> int:
        return 4

    def example(self, index: int, rng: Any) -> Example:
        """One of `data()`."""
        group = data()
        return Example({"pixels": group.inputs["pixels"][index].numpy()}, {}, str(index))


class Real:
    """One process: an architecture on a tiny backbone, wrapper, weighting, engine.

    Args:
        architecture: option. wrapper: its config. backbone: as in `tests.architectures.worlds.make`.
        keys: of the architecture.
    """

    def __init__(
        self,
        architecture: str,
        wrapper: dict[str, Any],
        backbone: Any = None,
        weighting: str = "equal",
        *,
        micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        reduce: Any = identity,
        scale: float = 1.0,
        **keys: Any,
    ) -> None:
        self.net = make(architecture, TASKS, backbone or {"name": "resnet", "norm": "group"}, **keys)
        self.weighting = build(option("weighting", weighting), TASKS)
        self.wrapper: Wrapper = build(wrapper, self.weighting)
        inputs = InputSpec("image", size=(32, 32))
        self.wrapper.prepare(self.net, TASKS, inputs)
        forward = self.wrapper.losses(Forward(self.net, TASKS, CPU, nullcontext))
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.net.eval()
        probe = self.net(part(data(), torch.arange(1)), list(TASKS))
        self.net.train()
        self.engine = Engine(
            self.weighting,
            parameters,
            find_reach({k: everything(v) for k, v in probe.items()}, parameters),
            micro_batches=micro_batches,
            reduce=reduce,
            device=CPU,
            loss_scale=lambda: scale,
            model=self.net,
        )
        self.scale = scale
        self.wrapper.attach(
            Surroundings(self.net, forward, self.engine, {"d": Scenes()}, inputs, 4, rank, world_size, reduce)
        )

    def step(
        self, batches: list[list[Group]], number: int = 0, counts: Any = None
    ) -> tuple[StepReport, dict[str, Tensor]]:
        """Report and unscaled gradients by name, of the model's parameters and the wrapper's own."""
        counts = counts_of(TASKS, batches) if counts is None else counts
        report = self.wrapper.gradients(batches, counts, number, 4)
        named = [*self.net.named_parameters(), *((f"wrapper.{n}", p) for n, p in self.wrapper.named_parameters())]
        return report, {n: p.grad / self.scale for n, p in named if p.grad is not None}


def split(group: Group, pieces: int) -> list[list[Group]]:
    """Micro-batches of equal size."""
    return [[part(group, rows)] for rows in torch.arange(len(group)).chunk(pieces)]


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-5) -> None:
    """Equal up to rounding, parameter by parameter."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def check_promises(architecture: str, wrapper: dict[str, Any], steps: int = 1, **keys: Any) -> None:
    """What every wrapper keeps: micro-batches, ranks and the loss scale change nothing; absent tasks are left alone.

    Args:
        steps: gradients after that many calls, for wrappers that remember.
        keys: of `Real`.
    """
    group = data()

    def run(made: Real, batches: list[list[Group]], counts: Any = None) -> dict[str, Tensor]:
        for number in range(steps):
            _, grads = made.step(batches, number, counts)
        return grads

    whole = run(Real(architecture, wrapper, **keys), split(group, 1))
    assert all(g.isfinite().all() for g in whole.values())
    close(run(Real(architecture, wrapper, micro_batches=2, **keys), split(group, 2)), whole)
    close(run(Real(architecture, wrapper, scale=2.0**12, **keys), split(group, 1)), whole)
    halves = split(group, 2)
    counts = counts_of(TASKS, halves).sum(0)

    ranks = Ranks(2)
    both = [
        Real(architecture, wrapper, rank=rank, world_size=2, reduce=ranks.reduce_for(rank), **keys) for rank in range(2)
    ]
    first, second = ranks.run(lambda rank, _: run(both[rank], [halves[rank]], counts))
    close(first, second, atol=0)
    close(first, whole)
    for name in TASKS:
        alone = [[part(group, torch.arange(4), [name])]]
        report, grads = Real(architecture, wrapper, **keys).step(alone)
        others = [n for n in grads if n.startswith("heads.") and not n.startswith(f"heads.{name}.")]
        assert others == [] and report.losses[list(TASKS).index(name)].isfinite()
