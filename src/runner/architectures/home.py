"""HoME, hierarchy of multi-gate experts (Wang, Cao, Fu, Gai, Zhou 2025, KDD, arXiv 2408.05430, section 3, figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.experts import Gate, Mixer, OnFeatures, Shape, Size, Stream, plus, summary, weigh
from runner.architectures.heads.layers import normalisation
from runner.backbones.base import Backbone
from runner.config.kinds import PositiveInt
from runner.errors import Problem, UserError, suggest


class HoME(OnFeatures):
    """Two levels of experts under a fixed hierarchy: all tasks, categories of tasks, single tasks.

    - First level: every category has experts, and there are shared ones. A category's stream mixes its own with the
      shared experts, the shared stream mixes all.
    - Second level: a task mixes its own experts and its category's, which read the category's stream, with shared
      ones, which read the shared stream.
    - Every expert normalises before its activation, which is Swish, so that none dies and all have one scale.
    - Feature gate: every expert sees its input through x ⊙ 2σ(x B A), B and A of low rank.
    - Self gate: a unit's own experts are added once more, weighed by a softmax (one expert: a sigmoid) of their own.

    The authors released no code; the gates' formulas agree with those of an independent implementation.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        categories: name → tasks, each task in one; None puts all tasks into one. Only tasks of the same kind meet.
        shared_experts, category_experts, task_experts: numbers of experts, of a unit per unit and level.
        rank: of the feature gates.
        hidden: widths of an expert's layers on vectors and tokens.
        channels: of its 1×1 and 3×3 convolution on every map.
        norm: in experts; "batch" as published, "group" is LayerNorm on vectors. Tokens always have LayerNorm, since a
            batch's statistics would depend on its padding.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        categories: dict[str, list[str]] | None = None,
        shared_experts: PositiveInt = 2,
        category_experts: PositiveInt = 2,
        task_experts: PositiveInt = 2,
        rank: PositiveInt = 8,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        grouped = _checked(categories, list(tasks))

        size = Size(hidden, channels, norm)

        def make_mixer(shape: Shape, names: list[str]) -> Mixer:
            own = {c: [n for n in members if n in names] for c, members in grouped.items()}
            own = {c: members for c, members in own.items() if members}

            def make_unit(before: Shape, count: int) -> Unit:
                return Unit(before, count, rank, size)

            return Hierarchy(shape, size.after(shape), own, make_unit, (shared_experts, category_experts, task_experts))

        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        super().__init__(make_backbone, tasks, defaults, make_mixer, size.after)


def _checked(categories: Mapping[str, Sequence[str]] | None, tasks: list[str]) -> dict[str, list[str]]:
    """Categories in which every task is once.

    Raises:
        UserError: a task is missing, twice, or unknown.
    """
    if categories is None:
        return {"all": tasks}
    named = [name for members in categories.values() for name in members]
    problems = [
        Problem(f"architecture.categories names '{name}', which is no task of the mixture", suggest(name, tasks))
        for name in dict.fromkeys(named)
        if name not in tasks
    ]
    problems += [
        Problem(f"architecture.categories has task '{name}' {named.count(name)} times", "name every task once")
        for name in tasks
        if named.count(name) != 1
    ]
    if problems:
        raise UserError(problems)
    return {category: list(members) for category, members in categories.items()}


class NormalisedExpert(nn.Module):
    """Feature gate, then layers of Swish(norm(W x)); on every map a 1×1 and a 3×3 convolution."""

    def __init__(self, shape: Shape, rank: int, size: Size) -> None:
        super().__init__()
        self.kind = shape.kind
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for width in shape.widths)
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for width in shape.widths)
        self.parts = nn.ModuleList()
        layers: list[nn.Module] = []
        if shape.kind == "dense":
            for width in shape.widths:
                layers = []
                for before, kernel in ((width, 1), (size.channels, 3)):
                    convolution = nn.Conv2d(before, size.channels, kernel, padding=kernel // 2, bias=False)
                    layers += [convolution, normalisation(size.norm, size.channels), nn.SiLU()]
                self.parts.append(nn.Sequential(*layers))
            return
        for before, width in pairwise([shape.widths[0], *size.hidden]):
            whole = size.norm == "batch" and shape.kind == "pooled"
            layers += [
                nn.Linear(before, width, bias=False),
                nn.BatchNorm1d(width) if whole else nn.LayerNorm(width),
                nn.SiLU(),
            ]
        self.parts.append(nn.Sequential(*layers))

    def forward(self, stream: Stream) -> Stream:
        made = []
        for x, down, up, part in zip(stream, self.down, self.up, self.parts, strict=True):
            gate = 2 * torch.sigmoid(up(down(summary([x], self.kind))))
            made.append(part(x * (gate[..., None, None] if self.kind == "dense" else gate)))
        return made


class SelfGate(nn.Module):
    """Weights of a unit's own experts from its input: softmax(W x), for one expert σ(W x)."""

    def __init__(self, shape: Shape, experts: int) -> None:
        super().__init__()
        self.kind = shape.kind
        self.out = nn.Linear(shape.gate_width, experts, bias=False)

    def forward(self, stream: Stream) -> Tensor:
        logits = self.out(summary(stream, self.kind))
        return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


class Unit(nn.Module):
    """The experts of the shared unit, of a category or of a task, at one level."""

    def __init__(self, shape: Shape, count: int, rank: int, size: Size) -> None:
        super().__init__()
        self.experts = nn.ModuleList(NormalisedExpert(shape, rank, size) for _ in range(count))

    def forward(self, stream: Stream) -> list[Stream]:
        return [expert(stream) for expert in self.experts]


class Hierarchy(Mixer):
    """The two levels.

    Args:
        before, between: shapes of the backbone's stream and of what experts make.
        categories: name → tasks.
        make_unit: (shape of its input, number of experts) → unit.
        counts: experts of the shared unit, of a category, of a task.
    """

    def __init__(
        self,
        before: Shape,
        between: Shape,
        categories: Mapping[str, Sequence[str]],
        make_unit: Callable[[Shape, int], Unit],
        counts: tuple[int, int, int],
    ) -> None:
        super().__init__()
        shared, category, task = counts
        self.category_of = {name: c for c, members in categories.items() for name in members}
        self.first_shared = make_unit(before, shared)
        self.first = nn.ModuleDict({c: make_unit(before, category) for c in categories})
        self.first_gates = nn.ModuleDict({c: Gate(before, category + shared) for c in categories})
        self.first_self = nn.ModuleDict({c: SelfGate(before, category) for c in categories})
        self.first_shared_gate = Gate(before, category * len(categories) + shared)
        self.first_shared_self = SelfGate(before, shared)
        self.second_shared = make_unit(between, shared)
        self.second = nn.ModuleDict({c: make_unit(between, category) for c in categories})
        self.own = nn.ModuleDict({name: make_unit(between, task) for name in self.category_of})
        self.gates = nn.ModuleDict({name: Gate(between, task + category + shared) for name in self.category_of})
        self.selves = nn.ModuleDict({name: SelfGate(between, task) for name in self.category_of})

    def forward(self, stream: Stream, tasks: Sequence[str]) -> dict[str, Stream]:
        below = self.first_shared(stream)
        made = {c: unit(stream) for c, unit in self.first.items()}
        everything = [x for own in made.values() for x in own] + below
        shared = plus(weigh(self.first_shared_gate(stream), everything), weigh(self.first_shared_self(stream), below))
        common = self.second_shared(shared)
        streams: dict[str, Stream] = {}
        seconds: dict[str, list[Stream]] = {}
        for c in dict.fromkeys(self.category_of[task] for task in tasks):
            mixed = weigh(self.first_gates[c](stream), made[c] + below)
            streams[c] = plus(mixed, weigh(self.first_self[c](stream), made[c]))
            seconds[c] = self.second[c](streams[c])
        found = {}
        for task in tasks:
            c = self.category_of[task]
            own = self.own[task](streams[c])
            mixed = weigh(self.gates[task](streams[c]), own + seconds[c] + common)
            found[task] = plus(mixed, weigh(self.selves[task](streams[c]), own))
        return found
