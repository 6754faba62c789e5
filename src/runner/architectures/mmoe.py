"""MMoE, multi-gate mixture of experts (Ma, Zhao, Yi, Chen, Hong, Chi 2018, KDD, equations 5 to 7, figure 1c)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from runner.architectures.experts import Expert, Gate, Mixer, OnFeatures, Shape, Size, Stream, weigh
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, PositiveInt


class MMoE(OnFeatures):
    """Experts shared by all tasks of a kind; every task has a gate of its own over them.

        y_k = h_k(Σ_e softmax(W_k x)_e · f_e(x))

    With one expert the gates are 1 and this is hard sharing with that expert as the last part of the backbone.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        experts: number of experts of each kind of task.
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
        experts: PositiveInt = 4,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group", "none"] = "group",
        dropout: Fraction = 0.0,
    ) -> None:
        size = Size(hidden, channels, norm, dropout)

        def make_mixer(shape: Shape, names: list[str]) -> Mixer:
            made = nn.ModuleList(Expert(shape, size) for _ in range(experts))
            return GatedExperts(made, nn.ModuleDict({name: Gate(shape, experts) for name in names}))

        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        super().__init__(make_backbone, tasks, defaults, make_mixer, size.after)


class GatedExperts(Mixer):
    """All experts run once; each asked-for task weighs them with its gate.

    Args:
        gates: task → module from a stream to weights over the experts.
    """

    def __init__(self, experts: nn.ModuleList, gates: nn.ModuleDict) -> None:
        super().__init__()
        self.experts, self.gates = experts, gates

    def forward(self, stream: Stream, tasks: Sequence[str]) -> dict[str, Stream]:
        made = [expert(stream) for expert in self.experts]
        return {task: weigh(self.gates[task](stream), made) for task in tasks}
