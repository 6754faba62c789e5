"""Medusa (Spencer, Bowden and Hadfield 2022, arXiv 2204.05698): heads that attend, tasks that do not touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.distillation import Residual, SpatialAttention
from runner.architectures.heads.layers import Norm
from runner.architectures.heads.resize import upsample
from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeFloat, NonNegativeInt, PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features


class Medusa(Decoder):
    """Per task: attention picks what it needs of each shared level, and combines the levels (figure 2).

    Tasks share the backbone and nothing else, and no task reads another's features, so that a task can be added to
    trained features, or taken away, without touching the others: the paper's universal feature learning trains the
    backbone on all tasks but one, freezes it and trains the head of the one that was left out.

    Per task and level, shared feature attention masks the backbone's map, σ(W_g ⊗ B) ⊙ (W_m ⊗ B), residual blocks
    refine it and a 1×1 classifier makes an initial prediction (supervised). At every level the multi-scale attention
    then adds the attended maps of all other levels, brought to its resolution (`MultiScale`); the task's head reads
    what comes out at all levels.

    The code was not published: widths and numbers of blocks are MTI-Net's, on which the paper builds.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of a task's features at every level; None takes the backbone's own at each, of which all are
            projected to the finest's for the attention across levels.
        blocks: residual blocks after the shared feature attention.
        norm: of the residual blocks.
        auxiliary_weight: of the initial predictions' losses, at each level.
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
        blocks: NonNegativeInt = 2,
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
        widths = spec.channels if channels is None else (channels,) * len(spec.channels)
        width = min(widths)
        self.pick = nn.ModuleDict(
            {
                t: nn.ModuleList(_pick(a, b, blocks, norm) for a, b in zip(spec.channels, widths, strict=True))
                for t in self.dense
            }
        )
        self.classify = nn.ModuleDict(
            {t: nn.ModuleList(nn.Conv2d(w, tasks[t].out_channels, 1) for w in widths) for t in self.dense}
            if auxiliary_weight
            else {}
        )
        self.combine = nn.ModuleDict({t: MultiScale(widths, width, self.strides) for t in self.dense})
        self.make_heads(FeatureSpec((width,) * len(widths), self.strides, 0))

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        levels, size = features.pyramid or [], features.size or (0, 0)
        made: Maps = {}
        between: Maps = {}
        for task in tasks:
            picked = [pick(level) for pick, level in zip(self.pick[task], levels, strict=True)]  # type: ignore[arg-type]
            if self.supervised and self.auxiliary_weight:
                between[task] = [
                    upsample(classify(x), stride, size)
                    for classify, x, stride in zip(self.classify[task], picked, self.strides, strict=True)  # type: ignore[arg-type]
                ]
            made[task] = self.combine[task](picked)
        return made, between


class MultiScale(nn.Module):
    """Each level adds the attended features of all others: F_s + Σ_{r≠s} σ(W_g ⊗ F_r) ⊙ (W_m ⊗ F_r) (section 3.3).

    A level is attended to once, at its own resolution; coarser results are upsampled and finer ones averaged.
    """

    def __init__(self, widths: Sequence[int], width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.project = nn.ModuleList(nn.Conv2d(w, width, 1) if w != width else nn.Identity() for w in widths)
        self.attend = nn.ModuleList(SpatialAttention(width) for _ in widths) if len(widths) > 1 else None

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Per level (B, C_s, H_s, W_s) → (B, C, H_s, W_s)."""
        own = [project(x) for project, x in zip(self.project, levels, strict=True)]
        if self.attend is None:
            return own
        messages = [attend(x) for attend, x in zip(self.attend, own, strict=True)]
        made = []
        for s, x in enumerate(own):
            for r, message in enumerate(messages):
                if r != s:
                    x = x + resampled(message, self.strides[r], self.strides[s], x.shape[-2:])
            made.append(x)
        return made


def resampled(x_BCHW: Tensor, stride: int, to: int, size: Sequence[int]) -> Tensor:
    """A map of one stride at another: bilinear to a finer one, means of whole cells to a coarser one."""
    if stride >= to:
        return upsample(x_BCHW, stride // to, (size[0], size[1]))
    return torch.nn.functional.avg_pool2d(x_BCHW, to // stride, ceil_mode=True)[..., : size[0], : size[1]]


def _pick(before: int, after: int, blocks: int, norm: Norm) -> nn.Sequential:
    """Shared feature attention and residual blocks."""
    refine = [Residual(before if n == 0 else after, after, norm) for n in range(blocks)]
    if not refine and before != after:
        return nn.Sequential(SpatialAttention(before), nn.Conv2d(before, after, 1))
    return nn.Sequential(SpatialAttention(before), *refine)
