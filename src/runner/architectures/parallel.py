"""What cross-stitch, sluice and NDDR networks share: a network per task, side by side, that exchange between stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.backbones.staged import require_stages
from runner.types import Features, Group


class ParallelNetworks(Architecture):
    """K backbones run in step; after every stage `exchange` makes each task's next state from those of all tasks.

    All backbones run as far as an asked-for task reads them, whichever tasks are asked for: their states are part of
    its prediction. A network that ends earlier than others (SegNet's for a pooled task) takes part until it ends.

    Args:
        make_backbone: builds one backbone; called once per task.
        tasks: name → task.
        defaults: kind → head config.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"

    def __init__(
        self, make_backbone: Callable[[], Backbone], tasks: Mapping[str, Any], defaults: Mapping[Any, Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.kinds = {name: task.kind for name, task in tasks.items()}
        for name, task in tasks.items():
            backbone = make_backbone()
            if not self.backbones:
                check_kinds(backbone, tasks)
                require_stages(backbone, type(self).__name__, self.needs == "maps")
            backbone.restrict([task.kind])
            self.backbones[name] = backbone
            self.heads[name] = make_head(backbone.spec, task, defaults)

    def depth(self, tasks: Sequence[str]) -> int:
        """How many stages the longest of these tasks' networks has."""
        return max([0, *(len(self.backbones[name].stage_channels) for name in tasks)])

    def members(self, index: int) -> list[str]:
        """The tasks whose networks have this stage."""
        return [name for name, backbone in self.backbones.items() if len(backbone.stage_channels) > index]

    def channels(self, index: int) -> int:
        """Channels of the states after this stage, the same in all networks that have it."""
        return self.backbones[self.members(index)[0]].stage_channels[index]

    def exchange(self, index: int, states: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """States after stage `index` by task → the next states of the wanted tasks. States are (B, C, …)."""
        raise NotImplementedError

    def finish_features(self, task: str, features: Features, states: list[Tensor]) -> Features:
        """A last change to a task's features, given its states after every stage."""
        return features

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        depth = self.depth(tasks)
        begun = {name: self.backbones[name].begin(group.inputs) for name in (self.members(0) if tasks else [])}
        states: dict[str, Tensor] = {name: x for name, (x, _) in begun.items()}
        seen: dict[str, list[Tensor]] = {name: [] for name in tasks}
        for index in range(depth):
            members = self.members(index)
            after = {n: self.backbones[n].stage(index, states[n], begun[n][1])[1] for n in members}
            goes_on = self.members(index + 1) if index + 1 < depth else []
            states = self.exchange(index, after, [n for n in members if n in goes_on or n in seen])
            for name in seen:
                if name in states:
                    seen[name].append(states[name])
        predictions = {}
        for name in tasks:
            features = self.backbones[name].collect(seen[name], begun[name][1], self.kinds[name])
            predictions[name] = self.heads[name](self.finish_features(name, features, seen[name]))
        return predictions

    def all_backbones(self) -> list[Backbone]:
        return list(self.backbones.values())


def own_and_others(own: float, count: int) -> list[list[float]]:
    """Rows of a convex mixture: `own` on the diagonal, the rest spread over the others; 1 where there are none."""
    if count == 1:
        return [[1.0]]
    rest = (1.0 - own) / (count - 1)
    return [[own if i == j else rest for j in range(count)] for i in range(count)]


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or a scalar → broadcast over the channels, dimension 1, of a state."""
    return values.view(-1, *[1] * (like.ndim - 2)) if values.ndim else values
