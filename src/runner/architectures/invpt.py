"""InvPT (Ye and Xu 2022, arXiv 2203.07997): an inverted pyramid transformer over the tokens of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.heads.layers import Norm, conv_block, normalisation
from runner.architectures.heads.resize import upsample
from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features

STAGES = 3


class InvPT(Decoder):
    """Preliminary predictions at the coarsest level, then three up-transformer stages, each at twice the resolution.

    Figure 2. Per dense task, two 3×3 convolutions on the coarsest level and a 1×1 classifier (the preliminary
    prediction, supervised); features and prediction are mixed into the tokens of the first stage. A stage lets the
    tokens of all tasks attend to one another (`UpBlock`), those after the first begin with an upsampling that halves
    the width and adds the backbone's level of that resolution. A task's outputs of all stages are brought to twice the
    last one's resolution and summed (cross-scale feature aggregation); a convolution and the task's head end it.

    The pyramid's three coarsest levels are read, with strides of 32, 16 and 8 for the usual backbones: the first stage
    works on the coarsest. (Published on ViT: taps of stride 16, the last one halved.)

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of the preliminary features (512 published).
        prediction_channels: added to it to make the width of the first stage (64 published); the stages after it have a
            half and a quarter of that.
        num_heads: of the attention.
        norm: of the convolutions.
        auxiliary_weight: of the preliminary predictions' losses.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt = 512,
        prediction_channels: PositiveInt = 64,
        num_heads: PositiveInt = 2,
        norm: Literal["batch", "group"] = "batch",
        auxiliary_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        self.auxiliary_weight = auxiliary_weight
        if not self.dense:
            self.make_heads(self.backbone.spec)
            return
        self.keep_coarsest(STAGES)
        spec = self.backbone.spec
        self.strides = spec.strides[::-1]
        width = channels + prediction_channels
        widths = [width // 2**stage for stage in range(STAGES)]
        if width % (2 ** (STAGES - 1) * num_heads):
            raise UserError(
                f"architecture.channels + architecture.prediction_channels = {width} is not divisible by"
                f" {2 ** (STAGES - 1)} · architecture.num_heads = {4 * num_heads}",
                "such as 512 + 64 with 2 heads",
            )
        before = spec.channels[-1]
        self.preliminary = nn.ModuleDict(
            {
                n: nn.Sequential(conv_block(before, before, 3, norm), conv_block(before, channels, 3, norm))
                for n in self.dense
            }
        )
        self.classify = nn.ModuleDict({n: nn.Conv2d(channels, tasks[n].out_channels, 1) for n in self.dense})
        self.mix = nn.ModuleDict({n: nn.Conv2d(channels + tasks[n].out_channels, width, 1) for n in self.dense})
        self.skips = nn.ModuleList(
            nn.Conv2d(c, w, 3, padding=1) for c, w in zip(spec.channels[-2::-1], widths[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.ModuleDict({n: _up_embedding(a, b, norm) for n in self.dense}) for a, b in pairwise(widths)
        )
        self.blocks = nn.ModuleList(
            UpBlock(len(self.dense), w, num_heads, 2 ** (stage + 1), norm, fuse=stage > 0)
            for stage, w in enumerate(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(len(self.dense) * w) for w in widths)
        self.widen = nn.ModuleList(nn.ModuleDict({n: nn.Conv2d(w, width, 1) for n in self.dense}) for w in widths[1:])
        self.project = nn.ModuleDict({n: conv_block(width, width, 3, norm) for n in self.dense})
        self.blocks.apply(_initialise)
        for block in self.project.values():
            nn.init.trunc_normal_(block[0].weight, std=0.02)  # type: ignore[index]
        self.make_heads(FeatureSpec((width,), (max(self.strides[-1] // 2, 1),), 0))

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        levels = (features.pyramid or [])[::-1]
        preliminary = {n: block(levels[0]) for n, block in self.preliminary.items()}
        predicted = {n: self.classify[n](x) for n, x in preliminary.items()}
        x = {n: self.mix[n](torch.cat([preliminary[n], predicted[n]], dim=1)) for n in self.dense}
        size = features.size or (0, 0)
        between: Maps = {}
        if self.supervised and self.auxiliary_weight:
            between = {n: [upsample(predicted[n], self.strides[0], size)] for n in tasks}
        stride = max(self.strides[-1] // 2, 1)
        cells = (-(-size[0] // stride), -(-size[1] // stride))
        total: dict[str, Tensor] = {}
        scores: Tensor | None = None
        for stage, block in enumerate(self.blocks):
            if stage > 0:
                skip = self.skips[stage - 1](levels[stage])
                x = {n: _resize(up(x[n]), skip.shape[-2:]) + skip for n, up in self.up[stage - 1].items()}  # type: ignore[operator]
            x, scores = block(x, scores)
            joined = torch.cat([x[n] for n in self.dense], dim=1).permute(0, 2, 3, 1)
            parts = self.norms[stage](joined).permute(0, 3, 1, 2).chunk(len(self.dense), dim=1)
            for n, part in zip(self.dense, parts, strict=True):
                if n in tasks:
                    wide = part if stage == 0 else self.widen[stage - 1][n](part)  # type: ignore[index]
                    here = _resize(upsample(wide, self.strides[stage] // stride, cells), cells)
                    total[n] = total[n] + here if n in total else here
        return {n: [self.project[n](total[n])] for n in tasks}, between


class UpBlock(nn.Module):
    """Attention among the tokens of all tasks, at a coarser grid, and an MLP (section 3.3, figures 3 and 4).

    Queries are made at half the resolution by a depth-wise convolution per task, keys and values by averaging over
    `pool` × `pool` cells, so that their number is the same in every stage. From the second stage on, the scores of the
    stage before, upsampled to this stage's queries, are fused with this stage's own by a 1×1 convolution over heads
    (attention message passing). The output is brought back to the tokens' resolution.
    """

    def __init__(self, tasks: int, dim: int, num_heads: int, pool: int, norm: Norm, fuse: bool) -> None:
        super().__init__()
        self.num_heads, self.pool = num_heads, pool
        self.scale = dim**-0.5  # of the whole width, as in the authors' code
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.shrink = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, bias=False), normalisation(norm, dim))
            for _ in range(tasks)
        )
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.fuse = nn.Conv2d(2 * num_heads, num_heads, 1) if fuse else None
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Mapping[str, Tensor], before: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Task → (B, C, H, W), and scores (B, heads, tasks · queries, keys) of the stage before, laid out as maps.

        Returns:
            the same of this stage; scores as (B, tasks, heads · keys, H', W').
        """
        names, maps = list(x), list(x.values())
        normed = [_channel_norm(self.norm1, m) for m in maps]
        small = [shrink(m) for shrink, m in zip(self.shrink, normed, strict=True)]
        grid = small[0].shape[-2:]
        pooled = [F.avg_pool2d(m, self.pool, ceil_mode=True) for m in normed]
        query, keys = (torch.cat([m.flatten(2) for m in parts], dim=2).transpose(1, 2) for parts in (small, pooled))
        q_BHQD, k_BHKD, v_BHKD = (
            layer(t).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, t in ((self.query, query), (self.key, keys), (self.value, keys))
        )
        scores_BHQK = q_BHQD @ k_BHKD.transpose(-2, -1) * self.scale
        if self.fuse is not None and before is not None:
            passed = _upsample_scores(before, grid, self.num_heads)
            scores_BHQK = self.fuse(torch.cat([scores_BHQK, passed], dim=1))
        attended = (scores_BHQK.softmax(-1) @ v_BHKD).transpose(1, 2).flatten(2)
        outs = self.out(attended).transpose(1, 2).chunk(len(names), dim=2)
        made = {}
        for name, m, out in zip(names, maps, outs, strict=True):
            m = m + _resize(out.unflatten(2, grid), m.shape[-2:])
            made[name] = m + _channel_norm(self.norm2, m, self.mlp)
        laid_out = scores_BHQK.unflatten(2, (len(names), *grid)).permute(0, 2, 1, 5, 3, 4).flatten(2, 3)
        return made, laid_out


def _upsample_scores(before_BTXHW: Tensor, grid: Sequence[int], num_heads: int) -> Tensor:
    """Scores of a coarser stage at this stage's queries: (B, heads, tasks · queries, keys)."""
    batch, tasks = before_BTXHW.shape[:2]
    fine = _resize(before_BTXHW.flatten(0, 1), grid).unflatten(0, (batch, tasks)).unflatten(2, (num_heads, -1))
    return fine.permute(0, 2, 1, 4, 5, 3).flatten(2, 4)


def _up_embedding(before: int, after: int, norm: Norm) -> nn.Sequential:
    """Twice the resolution, half the width: upsampling and two dilated convolutions."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        conv_block(before, after, 3, norm, dilation=2),
        conv_block(after, after, 3, norm, dilation=2),
    )


def _resize(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x_BCHW.shape[-2:]) == tuple(size):
        return x_BCHW
    return F.interpolate(x_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


def _channel_norm(norm: nn.Module, x_BCHW: Tensor, then: nn.Module | None = None) -> Tensor:
    x_BHWC = norm(x_BCHW.permute(0, 2, 3, 1))
    return (then(x_BHWC) if then is not None else x_BHWC).permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
