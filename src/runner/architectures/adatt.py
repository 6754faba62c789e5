"""AdaTT, adaptive task-to-task fusion (Li, Zhang, Wang, et al. 2023, KDD, arXiv 2304.04959, section 3, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from runner.architectures.experts import Expert, Gate, Mixer, OnFeatures, Shape, Size, Stream, plus, weigh
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt


class AdaTT(OnFeatures):
    """Levels of units, one per task and one shared, that read all units' experts and keep their own by a residual.

        f_u = Σ_e softmax(W_u x_u)_e · E_e(x)  over all experts   (AllExpertGF)
            + Σ_e v_ue · E_ue(x_u)             over its own       (NativeExpertLF)

    The last level has no shared output. Without shared experts this is AdaTT-sp. The released code's gates have a bias
    and its v starts uniformly in ±1/√n; here gates are the formula above without one, and v starts as the mean (ours).

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        levels: of fusion.
        task_experts, shared_experts: per level, those of a task per task.
        residual: the second line above; the authors keep it on.
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
        task_experts: PositiveInt = 2,
        shared_experts: NonNegativeInt = 1,
        residual: bool = True,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group", "none"] = "group",
        dropout: Fraction = 0.0,
    ) -> None:
        size = Size(hidden, channels, norm, dropout)

        def make_mixer(shape: Shape, names: list[str]) -> Mixer:
            def make_experts(before: Shape, count: int) -> nn.ModuleList:
                return nn.ModuleList(Expert(before, size) for _ in range(count))

            made = []
            for level in range(levels):
                own = {name: make_experts(shape, task_experts) for name in names}
                goes_on = level < levels - 1 and shared_experts > 0
                made.append(Fusion(shape, own, make_experts(shape, shared_experts), goes_on, residual))
                shape = size.after(shape)
            return Fusions(made)

        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        super().__init__(make_backbone, tasks, defaults, make_mixer, size.after)


class Fusion(nn.Module):
    """One level.

    Args:
        own: task → its experts.
        shared: experts of the shared unit; there may be none.
        goes_on: whether the shared unit has an output.
    """

    def __init__(
        self, shape: Shape, own: Mapping[str, nn.ModuleList], shared: nn.ModuleList, goes_on: bool, residual: bool
    ) -> None:
        super().__init__()
        self.experts, self.shared, self.residual = nn.ModuleDict(own), shared, residual
        total = sum(len(made) for made in own.values()) + len(shared)
        self.gates = nn.ModuleDict({name: Gate(shape, total) for name in own})
        self.shared_gate = Gate(shape, total) if goes_on else None
        # One own expert needs no weight: its last layer scales it.
        weighed = {name: made for name, made in own.items() if residual and len(made) > 1}
        self.native = nn.ParameterDict({name: torch.full((len(m),), 1.0 / len(m)) for name, m in weighed.items()})
        self.shared_native = (
            nn.Parameter(torch.full((len(shared),), 1.0 / len(shared)))
            if residual and goes_on and len(shared) > 1
            else None
        )

    def forward(
        self, shared: Stream, streams: Mapping[str, Stream], tasks: Sequence[str]
    ) -> tuple[Stream, dict[str, Stream]]:
        """The shared stream and every task's → the same one level up, for the tasks in `tasks`."""
        made = {name: [expert(streams[name]) for expert in own] for name, own in self.experts.items()}
        common = [expert(shared) for expert in self.shared]
        everything = [x for own in made.values() for x in own] + common
        fused = {}
        for task in tasks:
            mixed = weigh(self.gates[task](streams[task]), everything)
            fused[task] = self._keep(mixed, made[task], self.native.get(task))
        if self.shared_gate is not None:
            shared = self._keep(weigh(self.shared_gate(shared), everything), common, self.shared_native)
        return shared, fused

    def _keep(self, mixed: Stream, own: list[Stream], weights: torch.Tensor | None) -> Stream:
        if not self.residual:
            return mixed
        return plus(mixed, own[0] if weights is None else weigh(weights, own))


class Fusions(Mixer):
    """Fusion levels one after the other; all but the last need every task's unit."""

    def __init__(self, levels: Sequence[Fusion]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, stream: Stream, tasks: Sequence[str]) -> dict[str, Stream]:
        everyone = list(self.levels[0].experts)
        shared, streams = stream, dict.fromkeys(everyone, stream)
        for number, level in enumerate(self.levels, 1):
            shared, streams = level(shared, streams, tasks if number == len(self.levels) else everyone)
        return streams
