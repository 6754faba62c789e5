"""TaskPrompter (Ye and Xu 2023, ICLR): tasks are prompts that attend to places and channels of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.heads.layers import Norm, average_bins, normalisation
from runner.architectures.heads.resize import upsample
from runner.architectures.layer_maps import keep_layers, plain_features
from runner.backbones.base import Backbone
from runner.backbones.plain import PlainTransformer
from runner.config.kinds import PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features

HEAD_WIDTH = 32
FINAL_STRIDE = 4


class TaskPrompter(Decoder):
    """One learned prompt per task, updated from layer to layer; its affinities with a layer make the task's features.

    Figure 2. In a plain transformer the prompts are tokens of every block. Besides, a block's prompts are turned into
    maps and back (`Channels`), and compared with its channels. At the end of each quarter a task's features are decoded
    from the layer's map: weighted by its prompt's attention to places, head by head, and by that to channels, window by
    window (`Decode`). The features of all layers are summed.

    Pyramid backbones, whose blocks take no more tokens, get a prompt block per level instead: the prompts attend to the
    level's cells and to one another, and are projected to the next level's width (the released Swin form puts them in
    every window). Levels are decoded at their own resolution and summed at the finest.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of what is decoded from places, and from channels.
        out_channels: width of a task's features.
        grid: rows and columns that maps are averaged to where prompts are compared with channels; the patches of a
            training image, as published, make that exact.
        windows: per side of the grid; affinities with channels are their own in each.
        reweight: whether a task's features are a mix of all tasks', weighted by the affinities of the prompts.
        norm: of the convolutions.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt = 768,
        out_channels: PositiveInt = 768,
        grid: list[PositiveInt],
        windows: PositiveInt = 4,
        reweight: bool = False,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        if len(grid) != 2 or any(side % windows for side in grid):
            raise UserError(
                f"architecture.grid={list(grid)}: rows and columns, both divisible by architecture.windows={windows}",
                "such as [28, 36] with 4 windows per side",
            )
        self.plain = isinstance(self.backbone, PlainTransformer)
        if not self.dense:
            self.make_heads(self.backbone.spec)
            return
        spec = keep_layers(self.backbone)
        self.strides = spec.strides
        widths = spec.channels
        self.prompts = nn.Parameter(torch.empty(len(self.dense), widths[0]))
        nn.init.trunc_normal_(self.prompts, mean=1.0, std=1.0)
        if self.plain:
            per_block = [widths[0]] * len(self.backbone.blocks())
            num_heads = [self.backbone.trunk.config.num_attention_heads] * len(widths)
        else:
            per_block = list(widths)
            num_heads = [_heads(width) for width in widths]
            self.attend = nn.ModuleList(
                PromptBlock(width, heads, last=level + 1 == len(widths))
                for level, (width, heads) in enumerate(zip(widths, num_heads, strict=True))
            )
            self.grow = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.channels = nn.ModuleList(
            Channels(width, (grid[0], grid[1]), windows, last=index + 1 == len(per_block))
            for index, width in enumerate(per_block)
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict({t: Decode(width, channels, out_channels, norm) for t in self.dense}) for width in widths
        )
        self.reweight = nn.ModuleList(
            nn.ModuleDict({t: nn.Sequential(nn.Conv2d(h, h, 1), nn.GELU(), nn.Conv2d(h, 1, 1)) for t in self.dense})
            for h in (num_heads if reweight else [])
        )
        self.stride = min(FINAL_STRIDE, self.strides[0])
        self.project = nn.ModuleDict(
            {
                t: nn.Sequential(
                    nn.Conv2d(out_channels, out_channels, 3, padding=1), normalisation(norm, out_channels), nn.GELU()
                )
                for t in self.dense
            }
        )
        for block in self.project.values():
            nn.init.trunc_normal_(block[0].weight, std=0.02)  # type: ignore[index]
        self.make_heads(FeatureSpec((out_channels,), (self.stride,), 0))

    def features(self, inputs: dict[str, Tensor]) -> Features:
        """The layers' maps; those of a plain transformer come with the prompts' affinities."""
        if not self.dense or not self.plain:
            return self.backbone(inputs)
        backbone: Any = self.backbone
        x, run = backbone.begin(inputs)
        tokens, rows_columns = x.transpose(1, 2), run.grid or ()
        prompts = self.prompts.to(tokens.dtype).expand(len(tokens), -1, -1)
        sizes, channels = [tokens.shape[1], len(self.dense)], iter(self.channels)
        states, affinities = [], []
        for quarter in range(len(self.layers)):
            blocks = backbone.stage_blocks(quarter)
            for block in blocks:
                compare, norm = next(channels), backbone.entry_norm(block)
                normal = norm(prompts)
                cells = compare.to_cells(normal)
                if block is blocks[-1]:
                    patches = norm(tokens[:, 1:])
                    scores = backbone.scores(block, normal, torch.cat([normal, patches], dim=1))
                    by_channel = compare(cells, patches.transpose(1, 2).unflatten(2, rows_columns))
                    affinities.append(Affinity.of(scores, by_channel, rows_columns))
                tokens, prompts = block(torch.cat([tokens, prompts], dim=1)).split(sizes, dim=1)
                if compare.from_cells is not None:
                    prompts = prompts + compare.from_cells(cells)
            states.append(tokens)
        made = plain_features(backbone, states, run)
        return Prompted(made.pyramid, pooled=made.pooled, size=made.size, affinities=affinities)

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        levels = features.pyramid or []
        affinities = features.affinities if isinstance(features, Prompted) else self._attend(levels)
        total: dict[str, Tensor] = {}
        for index, (level, affinity, decode) in enumerate(zip(levels, affinities, self.layers, strict=True)):
            needed = self.dense if self.reweight else tasks
            made = {t: decode[t](level, *affinity.of_task(self.dense.index(t))) for t in needed}  # type: ignore[index]
            if self.reweight:
                made = self._mixed(made, affinity, index, tasks)
            for t in tasks:
                here = upsample(made[t], self.strides[index] // self.strides[0], levels[0].shape[-2:])
                total[t] = total[t] + here if t in total else here
        size = features.size or (0, 0)
        cells = (-(-size[0] // self.stride), -(-size[1] // self.stride))
        factor = self.strides[0] // self.stride
        return {t: [self.project[t](upsample(total[t], factor, cells))] for t in tasks}, {}

    def _attend(self, levels: Sequence[Tensor]) -> list[Affinity]:
        """The prompts through the levels of a pyramid."""
        prompts = self.prompts.expand(len(levels[0]), -1, -1)
        affinities = []
        for index, (level, block, compare) in enumerate(zip(levels, self.attend, self.channels, strict=True)):
            normal, cells_BNC = block.norm(prompts), block.norm(level.flatten(2).transpose(1, 2))  # type: ignore[operator]
            scores, attended = block(prompts, normal, cells_BNC)
            cells = compare.to_cells(normal)  # type: ignore[operator]
            by_channel = compare(cells, cells_BNC.transpose(1, 2).unflatten(2, level.shape[-2:]))
            affinities.append(Affinity.of(scores, by_channel, level.shape[-2:]))
            if attended is not None:
                prompts = self.grow[index](attended + compare.from_cells(cells))  # type: ignore[operator]
        return affinities

    def _mixed(
        self, made: Mapping[str, Tensor], affinity: Affinity, index: int, tasks: Sequence[str]
    ) -> dict[str, Tensor]:
        """Cross-task reweighting: F_t ← Σ_s w_ts F_s, w made from what prompt t's heads attend to in prompt s."""
        mixed = {}
        for t in tasks:
            row = self.dense.index(t)
            weights = self.reweight[index][t](affinity.prompts[:, :, row : row + 1])  # type: ignore[index]
            mixed[t] = sum(weights[..., s : s + 1] * made[name] for s, name in enumerate(self.dense))
        return mixed  # type: ignore[return-value]


@dataclass
class Affinity:
    """What the prompts of T tasks have to do with one layer.

    Attributes:
        prompts: (B, heads, T, T) with one another.
        places: (B, heads, T, H, W). channels: (B, T, C, windows, windows).
    """

    prompts: Tensor
    places: Tensor
    channels: Tensor

    @classmethod
    def of(cls, scores_BHTK: Tensor, channels: Tensor, grid: Sequence[int]) -> Affinity:
        """From the scores of the prompts with themselves and then with the cells of a grid."""
        tasks = scores_BHTK.shape[2]
        return cls(scores_BHTK[..., :tasks], scores_BHTK[..., tasks:].unflatten(3, tuple(grid)), channels)

    def of_task(self, index: int) -> tuple[Tensor, Tensor]:
        """(B, heads, H, W) and (B, C, windows, windows)."""
        return self.places[:, :, index], self.channels[:, index]


@dataclass
class Prompted(Features):
    """Features of a plain transformer whose blocks had prompts among their tokens; one affinity for each map."""

    affinities: list[Affinity] = field(default_factory=list)


class Channels(nn.Module):
    """Prompts as maps of few cells, compared with the maps of a layer's channels (section 3.2).

    Args:
        width: of prompts and maps. grid, windows: see `TaskPrompter`.
        last: the prompts are not read again, so nothing turns the maps back into prompts.
    """

    def __init__(self, width: int, grid: tuple[int, int], windows: int, last: bool) -> None:
        super().__init__()
        self.grid, self.windows = grid, windows
        self.to_cells = nn.Linear(width, grid[0] * grid[1])
        self.from_cells = None if last else nn.Linear(grid[0] * grid[1], width)

    def forward(self, prompts_BTN: Tensor, x_BCHW: Tensor) -> Tensor:
        """(B, T, C, windows, windows): products over the cells of each window."""
        maps = average_bins(x_BCHW, *self.grid)
        prompts, cells = (self._windows(m) for m in (prompts_BTN.unflatten(2, self.grid), maps))
        return torch.einsum("btxiyj,bcxiyj->btcxy", prompts, cells)

    def _windows(self, maps: Tensor) -> Tensor:
        return maps.unflatten(3, (self.windows, -1)).unflatten(2, (self.windows, -1))


class PromptBlock(nn.Module):
    """A transformer block for the prompts alone, which attend to one another and to the cells of a map."""

    def __init__(self, width: int, num_heads: int, last: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = None if last else nn.Linear(width, width)
        self.out = None if last else nn.Linear(width, width)
        self.mlp = (
            None
            if last
            else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        )

    def forward(self, prompts_BTC: Tensor, normal_BTC: Tensor, cells_BNC: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prompts, and prompts and cells as normalised by `norm` → (B, heads, T, T + N) scores, and new prompts."""
        context = torch.cat([normal_BTC, cells_BNC], dim=1)
        query, key = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, normal_BTC), (self.key, context))
        )
        scores = query @ key.transpose(-2, -1)
        if self.value is None or self.out is None or self.mlp is None:
            return scores, None
        value = self.value(context).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attended = (scores * query.shape[-1] ** -0.5).softmax(-1) @ value
        prompts_BTC = prompts_BTC + self.out(attended.transpose(1, 2).flatten(2))
        return scores, prompts_BTC + self.mlp(prompts_BTC)


class Decode(nn.Module):
    """A task's features of one layer: its map weighted by place and by channel, projected and fused (section 3.3)."""

    def __init__(self, before: int, channels: int, after: int, norm: Norm) -> None:
        super().__init__()
        self.by_place, self.by_channel = nn.Conv2d(before, channels, 1), nn.Conv2d(before, channels, 1)
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * channels, after, 1),
            nn.Conv2d(after, after, 3, padding=1),
            normalisation(norm, after),
            nn.GELU(),
            nn.Conv2d(after, after, 1),
        )

    def forward(self, x_BCHW: Tensor, places: Tensor, channels: Tensor) -> Tensor:
        """A layer's map, (B, heads, H', W') that covers it and (B, C, windows, windows) → (B, after, H, W)."""
        height, width = x_BCHW.shape[-2:]
        split = x_BCHW.unflatten(1, (places.shape[1], -1))
        by_place = x_BCHW + (places[..., :height, :width].unsqueeze(2) * split).flatten(1, 2)
        by_channel = x_BCHW + F.interpolate(channels, size=(height, width), mode="nearest") * x_BCHW
        return self.fuse(torch.cat([self.by_place(by_place), self.by_channel(by_channel)], dim=1))


def _heads(width: int) -> int:
    """Heads of about 32 channels."""
    return next(h for h in range(max(width // HEAD_WIDTH, 1), 0, -1) if width % h == 0)
