"""MTSL, multi-task structural learning (Gurulingan, Zonooz and Arani 2023, arXiv 2305.00441): the structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.backbones.staged import StageRun, require_stages
from runner.types import Group

Reached = tuple[Tensor, StageRun]


class MTSL(Architecture):
    """Identical networks, one per task, whose stages are merged where tasks turn out to be alike.

    `owner[i, t]` says whose stage i task t runs: at first everybody's own, which makes it `single_task`; after
    `wrapper=mtsl` has grouped a stage, that of the group's first task. Tasks that have run the same stages so far share
    what they computed. Groups only ever split from stage to stage, so that the structure is a tree. The stem belongs
    to the first stage; norms and necks after the stages, and heads, stay each task's own.

    A stage that nobody runs any more stays in checkpoints and is neither computed nor trained.

    Args:
        make_backbone: builds one backbone; called once per task, all start with the first one's weights.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"
    owner: Tensor

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
    ) -> None:
        super().__init__()
        self.kinds = {name: task.kind for name, task in tasks.items()}
        self.names = list(tasks)
        self.backbones = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        first: dict[str, Tensor] = {}
        for name, task in tasks.items():
            backbone = make_backbone()
            if not self.backbones:
                check_kinds(backbone, tasks)
                require_stages(backbone, "MTSL")
                first = {key: value.clone() for key, value in backbone.state_dict().items()}
            backbone.load_state_dict(first)
            backbone.restrict([task.kind])
            self.backbones[name] = backbone
            self.heads[name] = make_head(backbone.spec, task, defaults)
        self.depths = {name: len(backbone.stage_channels) for name, backbone in self.backbones.items()}
        self.register_buffer("owner", torch.arange(len(tasks)).repeat(max(self.depths.values(), default=0), 1))

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        predictions = {}
        states, runs = self.states(group, {name: self.depths[name] for name in tasks})
        for name in tasks:
            features = self.backbones[name].collect(states[name], runs[name], self.kinds[name])
            predictions[name] = self.heads[name](features)
        return predictions

    def states(self, group: Group, depths: Mapping[str, int]) -> tuple[dict[str, list[Tensor]], dict[str, StageRun]]:
        """The states after the first stages of some tasks, what they share computed once.

        Args:
            depths: task → how many stages to run.
        """
        owner = self.structure()
        known: dict[tuple[int, ...], Reached] = {}
        states: dict[str, list[Tensor]] = {}
        runs: dict[str, StageRun] = {}
        for name, depth in depths.items():
            path = tuple(owner[index][self.names.index(name)] for index in range(depth))
            states[name] = []
            for index in range(depth):
                if path[: index + 1] not in known:
                    known[path[: index + 1]] = self._stage(group, path[:index], path[index], known)
                x, runs[name] = known[path[: index + 1]]
                states[name].append(x)
            runs.setdefault(name, StageRun())
        return states, runs

    def _stage(self, group: Group, before: tuple[int, ...], owner: int, known: Mapping[Any, Reached]) -> Reached:
        backbone = self.backbones[self.names[owner]]
        x, run = known[before] if before else backbone.begin(group.inputs)
        run = replace(run, switches=list(run.switches))  # others may go on from the same place
        return backbone.stage(len(before), x, run)[1], run

    def structure(self) -> list[list[int]]:
        """`owner` as numbers; on the meta device, where nothing has a value, that of the start."""
        start = [list(range(len(self.names)))] * len(self.owner)
        return start if self.owner.is_meta else self.owner.tolist()

    def groups(self) -> list[list[list[str]]]:
        """For every stage, the groups of tasks that run it together."""
        found = []
        for index, owners in enumerate(self.structure()):
            having = [t for t, name in enumerate(self.names) if self.depths[name] > index]
            found.append(
                [[self.names[t] for t in having if owners[t] == o] for o in sorted({owners[t] for t in having})]
            )
        return found

    def study(
        self, measure: Callable[[], Mapping[str, Mapping[str, float]]], cost: Callable[[Sequence[str]], int]
    ) -> dict[str, Any]:
        """The structure that was learned."""
        return {"structure": self.groups()}

    def all_backbones(self) -> list[Backbone]:
        return list(self.backbones.values())
