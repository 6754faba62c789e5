"""LeNet as multi-task papers use it on MultiMNIST ("MultiLeNet"): two convolutions and a fully connected layer.

Sener and Koltun 2018, arXiv 1810.04650, appendix; after LeCun et al. 1998.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.image import ImageBackbone
from runner.backbones.staged import StageRun
from runner.config.kinds import Fraction, NonNegativeInt
from runner.specs import FeatureSpec, InputSpec

PRESETS = {"tiny": (4, 8, 16), "base": (10, 20, 50)}
"""size → (channels of the two convolutions, width of the pooled vector)."""

CELLS = 4
"""Rows and columns of the last map, whatever the image: what 28 pixels give."""


class LeNet(ImageBackbone):
    """Images → pooled (B, 50): 5×5 convolution, pooling, 5×5 convolution, pooling, linear.

    The second pooling is to 4 × 4 cells, which for images of 28 × 28 is the published one of 2 × 2; other sizes work
    as well. Layer groups: the two convolutions, the linear layer.

    Args:
        channels: 1 takes the mean of the three channels, which for grey images are the same; 3 keeps them.
        dropout: of whole channels after the second convolution.
    """

    input_kind = "image"
    serves = ("pooled",)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "base"] = "base",
        frozen: bool | NonNegativeInt = False,
        channels: Literal[1, 3] = 1,
        dropout: Fraction = 0.5,
        mean: Sequence[float] = (0.1307, 0.1307, 0.1307),
        std: Sequence[float] = (0.3081, 0.3081, 0.3081),
    ) -> None:
        first, second, width = PRESETS[size]
        super().__init__(inputs, FeatureSpec(dim=width), mean, std)
        self.widths, self.channels = (first, second), channels
        self.convolutions = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, first, 5)),
                nn.Sequential(nn.Conv2d(first, second, 5), nn.Dropout2d(dropout)),
            ]
        )
        self.linear = nn.Linear(second * CELLS * CELLS, width)
        self.finish(frozen, gradient_checkpointing=False)

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        return x_BCHW.mean(1, keepdim=True) if self.channels == 1 else x_BCHW

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        x_BCHW = self.convolutions[index](x)
        x_BCHW = F.relu(F.adaptive_max_pool2d(x_BCHW, CELLS) if index else F.max_pool2d(x_BCHW, 2))
        return x_BCHW, x_BCHW

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        run = StageRun()
        states = [self.stem(x_BCHW, run)]
        for index in range(2):
            states.append(self.stage(index, states[-1], run)[1])
        return states[1:]

    def pool(self, levels: list[Tensor]) -> Tensor:
        return F.relu(self.linear(levels[-1].flatten(1)))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Of the two convolutions."""
        return self.widths

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """None that holds for images of every size: the last map has 4 × 4 cells."""
        return ()

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return [self.convolutions[index]]

    def blocks(self) -> list[nn.Module]:
        return list(self.convolutions)

    def trunk_groups(self) -> list[list[nn.Module]]:
        return [*([layer] for layer in self.convolutions), [self.linear]]
