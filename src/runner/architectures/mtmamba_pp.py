"""MTMamba++ (Lin et al. 2024, arXiv 2408.15101): the cross-task scan is guided by what all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.heads.layers import conv_block
from runner.architectures.mamba import DropPath, GatedMixer
from runner.architectures.mtmamba import MTMamba
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, PositiveInt
from runner.specs import FeatureSpec


class GuidedCrossTask(nn.Module):
    """The cross-task Mamba block with fusion at semantic level (S-CTM, figure 5).

    The normalised features of all tasks are concatenated and fused by a 1×1 and a 3×3 convolution. Each task then scans
    its own features with Δ, B and C projected from the fused ones: how much of the past a task keeps, and where it
    reads, is decided by what all tasks see.
    """

    def __init__(self, tasks: Sequence[str], channels: int, expansion: int, states: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(len(tasks) * channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(tasks) * channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.norms = nn.ModuleDict({t: nn.LayerNorm(channels) for t in tasks})
        self.mix = nn.ModuleDict({t: GatedMixer(channels, expansion, states, guided=True) for t in tasks})
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Task → (B, H, W, C) of all tasks → the same of the wanted ones."""
        whole = self.norm(torch.cat(list(features.values()), dim=-1)).permute(0, 3, 1, 2)
        shared = self.fuse(whole).permute(0, 2, 3, 1)
        return {
            task: features[task] + self.drop_path(self.mix[task](self.norms[task](features[task]), shared))
            for task in wanted
        }


class MTMambaPP(MTMamba):
    """MTMamba with the cross-task block S-CTM, and a 3×3 convolution per task in place of the last expanding.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        state_size: N of the selective scans.
        expansion: how much wider than the tokens the scanned maps are.
        drop_path: stochastic depth of the first block; it falls to 0 in the last one.
        channels: of the last convolution (96 published).
        norm: after it.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        state_size: PositiveInt = 16,
        expansion: PositiveInt = 2,
        drop_path: Fraction = 0.2,
        channels: PositiveInt = 96,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        self.channels, self.kind = channels, norm
        super().__init__(
            make_backbone,
            tasks,
            dense_head=dense_head,
            pooled_head=pooled_head,
            token_head=token_head,
            state_size=state_size,
            expansion=expansion,
            drop_path=drop_path,
        )

    def make_cross(self, channels: int, expansion: int, states: int, drop_path: float) -> nn.Module:
        return GuidedCrossTask(self.dense, channels, expansion, states, drop_path)

    def make_last(self, channels: int, stride: int) -> None:
        for task in self.dense:
            block = conv_block(channels, self.channels, 3, self.kind)
            nn.init.trunc_normal_(block[0].weight, std=0.02)
            self.last[task] = block
        self.make_heads(FeatureSpec((self.channels,), (stride,), 0))

    def finish(self, task: str, x_BHWC: Tensor) -> Tensor:
        return self.last[task](x_BHWC.permute(0, 3, 1, 2))
