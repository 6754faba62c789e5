"""MTAN, the multi-task attention network (Liu, Johns, Davison 2019, arXiv 1803.10704, section 3, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.architectures.heads.layers import Norm, normalisation
from runner.architectures.heads.resize import upsample
from runner.backbones.base import Backbone
from runner.backbones.staged import require_stages
from runner.config.kinds import PositiveInt
from runner.types import Group


class MTAN(Architecture):
    """One shared backbone; every task attends to what it needs of each stage.

    At stage j, with u the map inside the stage and p its output:

        a = g(u ⊕ f(â of the stage before)),   â = a ⊙ p          (equations 1 and 2)

    g, per task: 1×1 convolution, norm, ReLU, 1×1 convolution, norm, sigmoid. f, shared by the tasks: a convolution to
    the next stage's channels, then max-pooling where the next map is smaller, or bilinear upsampling before it where it
    is larger. A task's features are its attended maps â in place of the backbone's.

    On SegNet this is the published network: g as wide as the stage, f a 3×3 convolution. On any other backbone it is
    the authors' later version on ResNet: u is what enters the stage's last block, g narrows to a quarter, f is a
    bottleneck block.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        transfer: f, a 3×3 convolution or a bottleneck block; None as published for the backbone.
        reduction: channels of a stage over those inside g; None as published for the backbone (1 or 4).
        norm: of g and f.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "maps"

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        transfer: Literal["conv", "bottleneck"] | None = None,
        reduction: PositiveInt | None = None,
        norm: Literal["batch", "group", "none"] = "batch",
    ) -> None:
        super().__init__()
        self.backbone: Any = make_backbone()
        check_kinds(self.backbone, tasks)
        require_stages(self.backbone, type(self).__name__, maps=True)
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds = {name: task.kind for name, task in tasks.items()}
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )
        # An encoder-decoder's pooled tasks end with the encoder, where there is a decoder at all.
        self.encoder_stages = len(self.backbone.stage_channels) - getattr(self.backbone, "decoder_stages", 0)
        published = hasattr(self.backbone, "decoder_stages")
        reduction = reduction or (1 if published else 4)
        make_transfer = _conv if (transfer or ("conv" if published else "bottleneck")) == "conv" else Bottleneck

        channels, inner = self.backbone.stage_channels, self.backbone.inner_channels
        self.attention = nn.ModuleList()
        for index, width in enumerate(channels):
            before = inner[index] + (width if index else 0)
            self.attention.append(
                nn.ModuleDict(
                    {
                        name: attention(before, max(1, width // reduction), width, norm)
                        for name in tasks
                        if index < self.last_stage(name)
                    }
                )
            )
        self.transfer = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise(channels)):
            turn = index + 1 == self.encoder_stages  # from encoder to decoder: one before pooling, one after unpooling
            steps = [make_transfer(before, before, norm)] if turn else []
            self.transfer.append(nn.ModuleList([*steps, make_transfer(before, after, norm)]))

    def last_stage(self, task: str) -> int:
        """How many stages a task reads."""
        return len(self.backbone.stage_channels) if self.kinds[task] == "dense" else self.encoder_stages

    def carry(self, index: int, x_BCHW: Tensor) -> Tensor:
        """f: what a task attended to at stage `index`, in the channels and at the size of the next stage."""
        strides, steps = self.backbone.stage_strides, self.transfer[index]
        if index + 1 < self.encoder_stages:
            x_BCHW = steps[0](x_BCHW)
            factor = strides[index + 1] // strides[index]
            return F.max_pool2d(x_BCHW, factor, ceil_mode=True) if factor > 1 else x_BCHW
        if index + 1 == self.encoder_stages:
            x_BCHW = F.max_pool2d(steps[0](x_BCHW), 2)
        size = [2 * side for side in x_BCHW.shape[-2:]]
        return steps[-1](upsample(x_BCHW, 2, (size[0], size[1])))

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        x_BCHW, run = self.backbone.begin(group.inputs)
        carried: dict[str, Tensor] = {}
        states: dict[str, list[Tensor]] = {task: [] for task in tasks}
        for index in range(max([0, *(self.last_stage(task) for task in tasks)])):
            inner_BCHW, x_BCHW = self.backbone.stage(index, x_BCHW, run)
            for task in tasks:
                if index >= self.last_stage(task):
                    continue
                seen_BCHW = torch.cat([inner_BCHW, carried[task]], dim=1) if index else inner_BCHW
                attended_BCHW = self.attention[index][task](seen_BCHW) * x_BCHW
                states[task].append(attended_BCHW)
                if index + 1 < self.last_stage(task):
                    carried[task] = self.carry(index, attended_BCHW)
        features = {task: self.backbone.collect(states[task], run, self.kinds[task]) for task in tasks}
        return {task: self.heads[task](features[task]) for task in tasks}

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


def attention(before: int, inside: int, after: int, norm: Norm) -> nn.Sequential:
    """g: two 1×1 convolutions, each with its norm, to a mask between 0 and 1."""
    return nn.Sequential(
        nn.Conv2d(before, inside, 1),
        normalisation(norm, inside),
        nn.ReLU(inplace=True),
        nn.Conv2d(inside, after, 1),
        normalisation(norm, after),
        nn.Sigmoid(),
    )


def _conv(before: int, after: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), normalisation(norm, after), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """The bottleneck block of ResNet (He et al. 2016, arXiv 1512.03385, figure 5) with a projection as its shortcut."""

    def __init__(self, before: int, after: int, norm: Norm) -> None:
        super().__init__()
        inside = max(1, after // 4)
        self.body = nn.Sequential(
            nn.Conv2d(before, inside, 1, bias=False),
            normalisation(norm, inside),
            nn.ReLU(inplace=True),
            nn.Conv2d(inside, inside, 3, padding=1, bias=False),
            normalisation(norm, inside),
            nn.ReLU(inplace=True),
            nn.Conv2d(inside, after, 1, bias=False),
            normalisation(norm, after),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), normalisation(norm, after))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.body(x_BCHW) + self.shortcut(x_BCHW))
