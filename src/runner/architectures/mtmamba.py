"""MTMamba (Lin et al. 2024, arXiv 2407.02228): Mamba blocks per task and across tasks, from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.mamba import DropPath, Expand, MambaBlock, Mixer
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features

SELF_BLOCKS = 2
FINAL = 4


class CrossTask(nn.Module):
    """The cross-task Mamba block with fusion at feature level (F-CTM, figure 4).

    The normalised features of all tasks are concatenated and mixed into one shared map; each task mixes its own too,
    and a gate made from its features blends the two: z_t = g_t ⊙ shared + (1 − g_t) ⊙ own_t, added to its features.
    """

    def __init__(self, tasks: Sequence[str], channels: int, expansion: int, states: int, drop_path: float) -> None:
        super().__init__()
        inner, whole = expansion * channels, len(tasks) * channels
        self.norm = nn.LayerNorm(whole)
        self.share = Mixer(whole, channels, expansion, states)
        self.norms = nn.ModuleDict({t: nn.LayerNorm(channels) for t in tasks})
        self.own = nn.ModuleDict({t: Mixer(channels, channels, expansion, states) for t in tasks})
        self.gate = nn.ModuleDict({t: nn.Linear(channels, inner, bias=False) for t in tasks})
        self.leave = nn.ModuleDict({t: nn.Linear(inner, channels, bias=False) for t in tasks})
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Task → (B, H, W, C) of all tasks → the same of the wanted ones."""
        shared = self.share(self.norm(torch.cat(list(features.values()), dim=-1)))
        made = {}
        for task in wanted:
            x = self.norms[task](features[task])
            gate = self.gate[task](x).sigmoid()
            blend = torch.lerp(self.own[task](x), shared, gate.to(shared.dtype))
            made[task] = features[task] + self.drop_path(self.leave[task](blend))
        return made


class MTMamba(Decoder):
    """A Mamba decoder that joins the pyramid's levels from the coarsest to the finest (figure 2).

    At each level but the coarsest, per task: patch expanding to its resolution, concatenation with the backbone's level
    and a linear layer, two self-task Mamba blocks; then one cross-task block for all tasks. After the finest level each
    task is expanded to four times its resolution and classified by its head.

    Published on Swin-L with strides 4, 8, 16 and 32; other pyramids are read as they are, levels of equal stride
    without expanding.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        state_size: N of the selective scans.
        expansion: how much wider than the tokens the scanned maps are.
        drop_path: stochastic depth of the first block; it falls to 0 in the last one.
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
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        spec = self.backbone.spec
        if not self.dense:
            self.make_heads(spec)
            return
        if len(spec.channels) < 2:
            raise UserError(
                f"{type(self).__name__} joins the levels of a pyramid, and this backbone has one",
                see="runner ls backbone",
            )
        widths, strides = spec.channels[::-1], spec.strides[::-1]
        count = SELF_BLOCKS + 1
        blocks = count * (len(widths) - 1)
        rates = [drop_path * (1 - index / (blocks - 1)) for index in range(blocks)]
        self.expand, self.join, self.own, self.cross = (nn.ModuleList() for _ in range(4))
        for stage, ((before, width), (coarse, fine)) in enumerate(
            zip(pairwise(widths), pairwise(strides), strict=True)
        ):
            here = rates[count * stage : count * (stage + 1)]
            self.expand.append(nn.ModuleDict({t: Expand(before, width, coarse // fine) for t in self.dense}))
            self.join.append(nn.ModuleDict({t: nn.Linear(2 * width, width) for t in self.dense}))
            self.own.append(
                nn.ModuleDict(
                    {
                        t: nn.Sequential(*(MambaBlock(width, expansion, state_size, rate) for rate in here[:-1]))
                        for t in self.dense
                    }
                )
            )
            self.cross.append(self.make_cross(width, expansion, state_size, here[-1]))
        self.last = nn.ModuleDict()
        self.make_last(spec.channels[0], spec.strides[0])

    def make_cross(self, channels: int, expansion: int, states: int, drop_path: float) -> nn.Module:
        """The cross-task block of a level."""
        return CrossTask(self.dense, channels, expansion, states, drop_path)

    def make_last(self, channels: int, stride: int) -> None:
        """What follows the finest level, and the heads."""
        factor = min(FINAL, stride)
        for task in self.dense:
            self.last[task] = Expand(channels, channels, factor)
        self.make_heads(FeatureSpec((channels,), (stride // factor,), 0))

    def finish(self, task: str, x_BHWC: Tensor) -> Tensor:
        """(B, C, H, W), what a task's head reads."""
        return self.last[task](x_BHWC).permute(0, 3, 1, 2)

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        levels = [level.permute(0, 2, 3, 1) for level in (features.pyramid or [])[::-1]]
        x = dict.fromkeys(self.dense, levels[0])
        for stage, skip_BHWC in enumerate(levels[1:]):
            height, width = skip_BHWC.shape[1:3]
            for task in self.dense:
                grown = self.expand[stage][task](x[task])[:, :height, :width]  # type: ignore[index]
                joined = self.join[stage][task](torch.cat([grown, skip_BHWC], dim=-1))  # type: ignore[index]
                x[task] = self.own[stage][task](joined)  # type: ignore[index]
            wanted = self.dense if stage + 2 < len(levels) else tasks
            x = self.cross[stage](x, wanted)
        return {task: [self.finish(task, x[task])] for task in tasks}, {}
