"""MTI-Net (Vandenhende, Georgoulis and Van Gool 2020, arXiv 2001.06902): multi-modal distillation at every scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.distillation import Distillation, Residual, SqueezeExcitation
from runner.architectures.heads.layers import Norm
from runner.architectures.heads.resize import upsample
from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class FeaturePropagation(nn.Module):
    """All tasks' features of a coarse scale, refined for the next finer one (section 3.3, figure 3).

    The tasks' features are concatenated and passed through a non-linear function; a softmax over the *tasks*, per
    channel and pixel, masks the concatenation; it is reduced to one task's width and each task adds it, squeezed and
    excited, to its own features. (The authors' code takes the softmax over groups of channels that mix tasks: its view
    splits the channels the other way round. This follows the paper.)
    """

    def __init__(self, tasks: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.tasks = tasks
        whole, inner = tasks * channels, max(tasks * channels // 4, 8)
        self.mix = nn.Sequential(Residual(whole, inner, norm), Residual(inner, inner, norm), nn.Conv2d(inner, whole, 1))
        self.reduce = Residual(whole, channels, norm)
        self.excite = nn.ModuleList(SqueezeExcitation(channels) for _ in range(tasks))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Per task (B, C, H, W) → the same."""
        whole = torch.cat(features, dim=1)
        mask = self.mix(whole).unflatten(1, (self.tasks, -1)).softmax(dim=1)
        shared = self.reduce((mask * whole.unflatten(1, (self.tasks, -1))).flatten(1, 2))
        return [x + excite(shared) for x, excite in zip(features, self.excite, strict=True)]


class MTINet(Decoder):
    """Initial predictions at every scale, propagated from coarse to fine; distillation at every scale (figure 2).

    From the coarsest scale to the finest: each task's features come from the backbone's level and what the feature
    propagation module made of the coarser scale; they make a supervised initial prediction. The distillation of
    PAD-Net joins the tasks at each scale, and each task's head aggregates its distilled features of all scales.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of the tasks' features at every scale; None takes the backbone's own at each (published).
        norm: of the added blocks.
        auxiliary_weight: of the initial predictions' losses, at each scale.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt | None = None,
        norm: Literal["batch", "group"] = "batch",
        auxiliary_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        self.auxiliary_weight = auxiliary_weight
        spec = self.backbone.spec
        if not self.dense:
            self.make_heads(spec)
            return
        self.strides = spec.strides
        widths = list(spec.channels) if channels is None else [channels] * len(spec.channels)
        self.initial, self.classify = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            coarser = widths[level + 1] if level + 1 < len(widths) else 0
            self.initial.append(
                nn.ModuleDict(
                    {
                        name: nn.Sequential(
                            Residual(spec.channels[level] + coarser, width, norm), Residual(width, width, norm)
                        )
                        for name in self.dense
                    }
                )
            )
            classifiers = {name: nn.Conv2d(width, tasks[name].out_channels, 1) for name in self.dense}
            self.classify.append(nn.ModuleDict(classifiers if auxiliary_weight else {}))
        self.propagate = nn.ModuleList(FeaturePropagation(len(self.dense), width, norm) for width in widths[1:])
        self.distil = nn.ModuleList(Distillation(self.dense, width) for width in widths)
        self.make_heads(FeatureSpec(tuple(widths), self.strides, 0))

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        pyramid = features.pyramid or []
        scales: list[dict[str, Tensor]] = [{} for _ in pyramid]
        carried: dict[str, Tensor] = {}
        for level in reversed(range(len(pyramid))):
            x_BCHW = pyramid[level]
            for name, block in self.initial[level].items():  # type: ignore[operator]
                joined = torch.cat([x_BCHW, carried[name]], dim=1) if carried else x_BCHW
                scales[level][name] = block(joined)
            if level > 0:
                refined = self.propagate[level - 1](list(scales[level].values()))
                factor, size = self.strides[level] // self.strides[level - 1], pyramid[level - 1].shape[-2:]
                carried = {n: upsample(x, factor, size) for n, x in zip(self.dense, refined, strict=True)}
        between: Maps = {}
        if self.supervised and self.auxiliary_weight:
            size = features.size or (0, 0)
            between = {
                name: [
                    upsample(classify[name](scale[name]), stride, size)  # type: ignore[index]
                    for classify, scale, stride in zip(self.classify, scales, self.strides, strict=True)
                ]
                for name in tasks
            }
        distilled = [distil(scale, tasks) for distil, scale in zip(self.distil, scales, strict=True)]
        return {name: [scale[name] for scale in distilled] for name in tasks}, between
