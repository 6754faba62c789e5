"""The network of HRNet: branches at four resolutions that exchange their features again and again.

Wang et al. 2020, arXiv 1908.07919. Modules have the names of the checkpoints on the hub (`timm/hrnet_w48.ms_in1k`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Upsampling = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class Shape:
    """What makes one size of the network.

    Attributes:
        width: channels of the finest branch; each coarser one has twice as many as the one before.
        blocks: residual blocks of a branch between two exchanges.
        modules: exchanges in stages 2, 3 and 4, of two, three and four branches.
        first: bottlenecks of stage 1, and the width inside of them, a quarter of what they give.
        stem: channels after each of the two strided convolutions.
    """

    width: int
    blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    first: tuple[int, int] = (4, 64)
    stem: int = 64

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the four branches, fine to coarse."""
        return self.width, 2 * self.width, 4 * self.width, 8 * self.width


PRESETS = {
    "tiny": Shape(8, blocks=1, modules=(1, 1, 2), first=(2, 8), stem=16),
    "w18_small": Shape(16, blocks=2, modules=(1, 1, 1), first=(1, 32)),
    "w18_small_v2": Shape(18, blocks=2, modules=(1, 3, 2), first=(2, 64)),
    **{f"w{width}": Shape(width) for width in (18, 30, 32, 40, 44, 48, 64)},
}
"""The tiny one is for tests and toys, all others are published."""


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1, active: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, where `active`, ReLU."""
    layers = [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class Basic(nn.Module):
    """Two 3×3 convolutions around which the input is led."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(y_BCHW)) + x_BCHW)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution; the last one gives four times `width` channels."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None if before == 4 * width else convolution(before, 4 * width, 1, active=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.bn2(self.conv2(y_BCHW)))
        around_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return F.relu(self.bn3(self.conv3(y_BCHW)) + around_BCHW)


class Transition(nn.ModuleList):
    """What the branches of one stage become in the next one, which has one branch more, made of the coarsest."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        same = (
            nn.Identity() if old == new else convolution(old, new) for old, new in zip(before, after[:-1], strict=True)
        )
        super().__init__([*same, nn.Sequential(convolution(before[-1], after[-1], stride=2))])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Branches, fine to coarse → the branches of the next stage."""
        return [layer(x) for layer, x in zip(self, [*maps, maps[-1]], strict=True)]


class Exchange(nn.Module):
    """Residual blocks on every branch, then every branch becomes the sum of all, brought to its resolution.

    With R_r the branch r after its blocks: R'_i = ReLU(Σ_r f_ri(R_r)); f_ii is the identity, f_ri
    of a finer branch (r < i) i − r strided 3×3 convolutions, of a coarser one (r > i) a 1×1 convolution and upsampling
    (section 3.2).
    """

    def __init__(self, widths: Sequence[int], blocks: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Basic(width) for _ in range(blocks))) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_brought(widths, source, target, upsampling) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def keep(self, targets: Sequence[int]) -> None:
        """Make some branches' sums only; the layers of the others lose their parameters, the rest keep their names."""
        for target in range(len(self.fuse_layers)):
            if target not in targets:
                self.fuse_layers[target] = nn.ModuleList()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Branches, fine to coarse → the same, without those that are not kept."""
        own = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        made = []
        for layers in self.fuse_layers:
            brought = [layer(x) for layer, x in zip(layers, own, strict=False)]  # type: ignore[arg-type]
            if brought:
                made.append(F.relu(sum(brought[1:], brought[0])))
        return made


def _brought(widths: Sequence[int], source: int, target: int, upsampling: Upsampling) -> nn.Module:
    """f: one branch in the channels and at the resolution of another."""
    before, after = widths[source], widths[target]
    if source == target:
        return nn.Identity()
    if source > target:
        factor = 2 ** (source - target)
        return nn.Sequential(
            *convolution(before, after, 1, active=False), nn.Upsample(scale_factor=factor, mode=upsampling)
        )
    steps = [convolution(before, before, stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, convolution(before, after, stride=2, active=False))


class HighResolutionNet(nn.Module):
    """Images (B, 3, H, W), sides multiples of 32 → the four branches at strides 4, 8, 16 and 32.

    Args:
        size: one of `PRESETS`.
        upsampling: of coarser branches where they are added to finer ones.
    """

    def __init__(self, size: str, upsampling: Upsampling = "nearest") -> None:
        super().__init__()
        self.size, self.shape = size, (shape := PRESETS[size])
        self.conv1 = nn.Conv2d(3, shape.stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(shape.stem)
        self.conv2 = nn.Conv2d(shape.stem, shape.stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(shape.stem)
        count, inner = shape.first
        self.layer1 = nn.Sequential(*(Bottleneck(4 * inner if i else shape.stem, inner) for i in range(count)))
        widths, blocks = shape.widths, shape.blocks
        self.transition1 = Transition([4 * inner], widths[:2])
        self.stage2 = nn.Sequential(*(Exchange(widths[:2], blocks, upsampling) for _ in range(shape.modules[0])))
        self.transition2 = Transition(widths[:2], widths[:3])
        self.stage3 = nn.Sequential(*(Exchange(widths[:3], blocks, upsampling) for _ in range(shape.modules[1])))
        self.transition3 = Transition(widths[:3], widths)
        self.stage4 = nn.Sequential(*(Exchange(widths, blocks, upsampling) for _ in range(shape.modules[2])))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x_BCHW: Tensor) -> Tensor:
        """Two strided convolutions: a quarter of the resolution."""
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(x_BCHW)))

    def parts(self) -> list[tuple[Transition, nn.Sequential]]:
        """Stages 2, 3 and 4: (how their branches begin, their exchanges)."""
        return [(self.transition1, self.stage2), (self.transition2, self.stage3), (self.transition3, self.stage4)]

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        maps = [self.layer1(self.stem(x_BCHW))]
        for transition, exchanges in self.parts():
            maps = exchanges(transition(maps))
        return maps
