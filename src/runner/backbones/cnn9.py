"""The nine-layer network of the CelebA experiments: seven convolutions and two fully connected layers.

Liu et al. 2023 (FAMO), arXiv 2306.03792, appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.image import ImageBackbone
from runner.backbones.staged import StageRun, through
from runner.config.kinds import NonNegativeInt
from runner.specs import FeatureSpec, InputSpec

PRESETS = {"tiny": (8, 16, 16, 32), "base": (64, 128, 256, 512)}
CONVOLUTIONS = (1, 2, 2, 2)
"""Of the four stages, each but the first after a 2 × 2 pooling."""


class CNN9(ImageBackbone):
    """Convolutions 3×3 with BatchNorm and ReLU; pyramid of its four stages, pooled after two linear layers.

    Layer groups: one per stage, then the linear layers. `mean` and `std` are 0 and 1 as published: images go in as they
    are.
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
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        widths = PRESETS[size]
        super().__init__(inputs, FeatureSpec(widths, (1, 2, 4, 8), widths[-1]), mean, std, multiple=8)
        self.convolutions = nn.ModuleList(
            nn.ModuleList(_convolution(before if i == 0 else width, width) for i in range(count))
            for (before, width), count in zip(pairwise((3, *widths)), CONVOLUTIONS, strict=True)
        )
        self.linear: nn.Sequential | None = nn.Sequential(_linear(widths[-1]), _linear(widths[-1]))
        self.finish(frozen, gradient_checkpointing)

    def drop_unwanted(self) -> None:
        if "pooled" not in self.wanted:
            self.linear = None

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        return through(self.stage_blocks(index), F.max_pool2d(x, 2) if index else x)

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        run, levels = StageRun(), []
        for index in range(len(CONVOLUTIONS)):
            x_BCHW = self.stage(index, x_BCHW, run)[1]
            levels.append(x_BCHW)
        return levels

    def pool(self, levels: list[Tensor]) -> Tensor:
        assert self.linear is not None
        return self.linear(super().pool(levels))

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.convolutions[index])

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.convolutions for block in stage]

    def trunk_groups(self) -> list[list[nn.Module]]:
        last = [[self.linear]] if self.linear is not None else []
        return [*([stage] for stage in self.convolutions), *last]


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _linear(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
