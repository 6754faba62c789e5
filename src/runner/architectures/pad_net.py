"""PAD-Net (Xu, Ouyang, Wang and Sebe 2018, arXiv 1805.04409): predict, distil, predict again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.distillation import Distillation, Residual
from runner.architectures.heads.layers import Norm
from runner.architectures.heads.resize import concatenated, upsample
from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class PADNet(Decoder):
    """Initial predictions of every task, their features exchanged by attention, final predictions (figure 2).

    Per dense task: two bottleneck blocks on the backbone's features and a 1×1 classifier (the initial prediction,
    supervised); the blocks' features of all tasks pass the multi-modal distillation (module C, equation 3); the task's
    head makes the final prediction. The published backbone gives one dilated map; `level: all` reads a whole
    pyramid instead, concatenated at its finest resolution.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of the tasks' features, a multiple of 4.
        level: all levels of the pyramid, or the coarsest only ("last", as published on a dilated ResNet).
        norm: of the added blocks.
        auxiliary_weight: of the initial predictions' losses.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt = 256,
        level: Literal["last", "all"] = "all",
        norm: Literal["batch", "group"] = "batch",
        auxiliary_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        self.auxiliary_weight = auxiliary_weight
        self.level = level
        spec = self.backbone.spec
        if not self.dense:
            self.make_heads(spec)
            return
        self.strides = spec.strides
        self.stride = spec.strides[-1 if level == "last" else 0]
        before = spec.channels[-1] if level == "last" else sum(spec.channels)
        self.initial = nn.ModuleDict({name: _blocks(before, channels, norm) for name in self.dense})
        self.classify = nn.ModuleDict(
            {name: nn.Conv2d(channels, tasks[name].out_channels, 1) for name in self.dense} if auxiliary_weight else {}
        )
        self.distil = Distillation(self.dense, channels)
        self.make_heads(FeatureSpec((channels,), (self.stride,), 0))

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        x_BCHW = self._one_map(features.pyramid or [])
        initial = {name: block(x_BCHW) for name, block in self.initial.items()}
        between: Maps = {}
        if self.supervised and self.auxiliary_weight:
            size = features.size or (0, 0)
            between = {name: [upsample(self.classify[name](initial[name]), self.stride, size)] for name in tasks}
        return {name: [x] for name, x in self.distil(initial, tasks).items()}, between

    def _one_map(self, levels: Sequence[Tensor]) -> Tensor:
        if self.level == "last":
            return levels[-1]
        return concatenated(levels, self.strides)


def _blocks(before: int, channels: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        Residual(before, channels, norm, bottleneck=True), Residual(channels, channels, norm, bottleneck=True)
    )
