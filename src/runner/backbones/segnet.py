"""SegNet as multi-task papers use it: VGG-16's convolutions down, their mirror image up, unpooling at stored maxima.

Badrinarayanan, Kendall and Cipolla 2017, arXiv 1511.00561, in the form of MTAN (Liu et al. 2019, arXiv 1803.10704):
five encoder stages of 2, 2, 3, 3, 3 convolutions, each 3×3 + BatchNorm + ReLU, with a 2×2 max-pooling after every
stage, and five decoder stages of 3, 3, 3, 2, 2 after an unpooling each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from runner.backbones.resnet import group_norm
from runner.backbones.staged import StageRun, through
from runner.config.kinds import NonNegativeInt
from runner.specs import FeatureSpec, InputSpec

PRESETS = {"tiny": (16, 16, 32, 32, 32), "base": (64, 128, 256, 512, 512)}
CONVOLUTIONS = (2, 2, 3, 3, 3)


class SegNet(ImageBackbone):
    """Encoder and decoder; pyramid of the five decoder stages, from full resolution to 1/16, pooled from the encoder.

    Heads that read the finest level alone (`conv`) give the published network. Layer groups: one per encoder stage,
    then one per decoder stage.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "base"] = "base",
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        norm: Literal["batch", "group"] = "batch",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        widths = PRESETS[size]
        self.widths = widths
        # Decoder stage s works at the size of encoder stage s and ends in the width of the stage below it.
        ends = (widths[0], *widths[:-1])
        super().__init__(inputs, FeatureSpec(ends, (1, 2, 4, 8, 16), widths[-1]), mean, std, multiple=32)
        self.encoder = nn.ModuleList(
            _stage(before, width, count, norm)
            for (before, width), count in zip(pairwise((3, *widths)), CONVOLUTIONS, strict=True)
        )
        self.decoder: nn.ModuleList | None = nn.ModuleList(
            _stage(width, end, count, norm) for width, end, count in zip(widths, ends, CONVOLUTIONS, strict=True)
        )
        self.finest = 0  # level that the last decoder stage makes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        self.finish(frozen, gradient_checkpointing)

    def drop_unwanted(self) -> None:
        if "dense" not in self.wanted:
            self.decoder = None

    def keep_levels(self, indices: Sequence[int]) -> None:
        """Decoder stages finer than the finest level that is read are dropped."""
        super().keep_levels(indices)
        if self.decoder is not None:
            self.finest = min(indices)
            self.decoder = self.decoder[self.finest :]

    def trunk_groups(self) -> list[list[nn.Module]]:
        return [[stage] for stage in [*self.encoder, *reversed(self.decoder or [])]]

    def blocks(self) -> list[nn.Module]:
        return [block for stage in [*self.encoder, *(self.decoder or [])] for block in stage]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Five encoder stages, then the decoder's from coarse to fine."""
        return (*self.widths, *(reversed(self.stage_spec.channels[self.finest :]) if self.decoder is not None else ()))

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """Of decoder stages those of their unpooled input."""
        return (*self.widths, *(reversed(self.widths[self.finest :]) if self.decoder is not None else ()))

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """States are taken before pooling: 1, 2, 4, 8, 16, then back."""
        strides = self.stage_spec.strides
        return (*strides, *(reversed(strides[self.finest :]) if self.decoder is not None else ()))

    @property
    def decoder_stages(self) -> int:
        """How many of the stages are the decoder's, the last ones."""
        return 0 if self.decoder is None else len(self.decoder)

    def resample(self, index: int, x_BCHW: Tensor, run: StageRun) -> Tensor:
        """The pooling or unpooling at the start of stage `index`.

        The first decoder stage pools once more and unpools again, which keeps of the last encoder stage its maxima.
        """
        count = len(self.encoder)
        if 0 < index <= count:
            x_BCHW, switches = F.max_pool2d(x_BCHW, 2, return_indices=True)
            run.switches.append(switches)
        if index >= count:
            x_BCHW = F.max_unpool2d(x_BCHW, run.switches.pop(), 2)
        return x_BCHW

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        """(After the first convolution of an encoder stage, or the unpooled input of a decoder stage; its output).

        The inner maps are those that MTAN attends with.
        """
        blocks = self.stage_blocks(index)
        x = self.resample(index, x, run)
        if index >= len(self.encoder):
            return x, through(blocks, x)[1]
        first = blocks[0](x)
        return first, through(blocks[1:], first)[1]

    def stage_blocks(self, index: int) -> list[nn.Module]:
        count = len(self.encoder)
        return list(self.encoder[index] if index < count else (self.decoder or [])[2 * count - 1 - index - self.finest])

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        run, states = StageRun(), []
        for index in range(len(self.stage_channels)):
            x_BCHW = self.stage(index, x_BCHW, run)[1]
            states.append(x_BCHW)
        return states

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        made = levels[: len(self.encoder) - 1 : -1]
        return [made[0]] * self.finest + made  # nobody reads the ones in front: `kept` has no such index

    def pool(self, levels: list[Tensor]) -> Tensor:
        return levels[len(self.encoder) - 1].mean((-2, -1))


def _stage(before: int, after: int, count: int, norm: str) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(before if i == 0 else after, after, 3, padding=1),
            nn.BatchNorm2d(after) if norm == "batch" else group_norm(after),
            nn.ReLU(inplace=True),
        )
        for i in range(count)
    )
