"""SegFormer's and PVTv2's encoders share a shape: four stages of overlapping patches, each ending in a LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from torch import Tensor, nn

from runner.backbones.image import ImageBackbone
from runner.backbones.staged import StageRun, through
from runner.specs import FeatureSpec, InputSpec


class MixBackbone(ImageBackbone):
    """The common part; layer groups: one per block, a stage's patch embedding with its first block."""

    def __init__(self, inputs: InputSpec, trunk: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        channels = tuple(trunk.config.hidden_sizes)
        strides = tuple(accumulate(trunk.config.strides, mul))
        # Sides that are multiples of the last stride keep the strided keys and values whole.
        super().__init__(inputs, FeatureSpec(channels, strides, channels[-1]), mean, std, multiple=strides[-1])
        self.trunk = trunk

    def trunk_stages(self) -> list[tuple[nn.Module, nn.ModuleList, nn.Module]]:
        """(patch embedding, blocks, norm) of every stage."""
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        return [block for _, blocks, _ in self.trunk_stages() for block in blocks]

    def trunk_groups(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = []
        for embedding, blocks, norm in self.trunk_stages():
            stage: list[list[nn.Module]] = [[block] for block in blocks]
            stage[0].insert(0, embedding)
            stage[-1].append(norm)
            groups += stage
        return groups

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        return list(self.trunk(x_BCHW, output_hidden_states=True).hidden_states)

    def run_block(self, block: Any, tokens_BTD: Tensor, height: int, width: int) -> Tensor:
        """One transformer block."""
        return block(tokens_BTD, height, width)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        embedding, blocks, norm = self.trunk_stages()[index]
        tokens_BTD, height, width = embedding(x)
        inner, outer = through(blocks, tokens_BTD, lambda b, y_BTD: self.run_block(b, y_BTD, height, width))
        grid = height, width
        outer_BCHW = norm(outer).unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
        if len(blocks) == 1:
            return outer_BCHW, outer_BCHW
        return inner.unflatten(1, grid).permute(0, 3, 1, 2), outer_BCHW

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.trunk_stages()[index][1])
