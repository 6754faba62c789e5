"""PLE, progressive layered extraction (Tang, Liu, Zhao, Gong 2020, RecSys, equations 5 to 7, figure 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from runner.architectures.experts import Expert, Gate, Mixer, OnFeatures, Shape, Size, Stream, weigh
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt


class PLE(OnFeatures):
    """Levels of shared experts and experts of each task; a gate mixes a task's own with the shared ones.

    At every level task k's experts and gate read task k's stream, the shared experts the shared one, which below the
    last level is a mixture, by a gate of its own, of all experts. With one level this is CGC (`architecture=cgc`).

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        levels: of experts.
        shared_experts, task_experts: per level, and of those of a task per task.
        hidden: widths of an expert's layers on vectors and tokens.
        channels: of its 1×1 and 3×3 convolution on every map.
        norm: of experts on maps.
        dropout: in experts on vectors and tokens.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        levels: PositiveInt = 2,
        shared_experts: PositiveInt = 2,
        task_experts: NonNegativeInt = 2,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group", "none"] = "group",
        dropout: Fraction = 0.0,
    ) -> None:
        size = Size(hidden, channels, norm, dropout)

        def make_mixer(shape: Shape, names: list[str]) -> Mixer:
            def make_expert(before: Shape) -> Expert:
                return Expert(before, size)

            made = []
            for level in range(levels):
                last = level == levels - 1
                made.append(Extraction(shape, names, shared_experts, task_experts, make_expert, shared_gate=not last))
                shape = size.after(shape)
            return Levels(made)

        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        super().__init__(make_backbone, tasks, defaults, make_mixer, size.after)


class Extraction(nn.Module):
    """One level: shared experts, each task's experts, and the gates over them.

    Args:
        shared_gate: whether the shared stream goes on.
    """

    def __init__(
        self,
        shape: Shape,
        names: Sequence[str],
        shared: int,
        own: int,
        make_expert: Callable[[Shape], nn.Module],
        shared_gate: bool,
    ) -> None:
        super().__init__()
        self.shared = nn.ModuleList(make_expert(shape) for _ in range(shared))
        self.own = nn.ModuleDict({name: nn.ModuleList(make_expert(shape) for _ in range(own)) for name in names})
        self.gates = nn.ModuleDict({name: Gate(shape, own + shared) for name in names})
        self.shared_gate = Gate(shape, own * len(names) + shared) if shared_gate else None

    def forward(
        self, shared: Stream, streams: Mapping[str, Stream], tasks: Sequence[str]
    ) -> tuple[Stream, dict[str, Stream]]:
        """The shared stream and each task's → the same one level up; experts of tasks outside `tasks` do not run."""
        common = [expert(shared) for expert in self.shared]
        made = {task: [expert(streams[task]) for expert in self.own[task]] for task in tasks}
        after = {task: weigh(self.gates[task](streams[task]), made[task] + common) for task in tasks}
        if self.shared_gate is None:
            return shared, after
        everything = [x for streams_of_task in made.values() for x in streams_of_task] + common
        return weigh(self.shared_gate(shared), everything), after


class Levels(Mixer):
    """Extraction levels one after the other; below the last one all experts run, since the shared gate reads them."""

    def __init__(self, levels: Sequence[Extraction]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, stream: Stream, tasks: Sequence[str]) -> dict[str, Stream]:
        shared, streams = stream, dict.fromkeys(self.levels[0].own, stream)
        for level in self.levels:
            everyone = list(level.own) if level.shared_gate is not None else tasks
            shared, streams = level(shared, streams, everyone)
        return {task: streams[task] for task in tasks}
