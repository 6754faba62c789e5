"""Blocks that PAD-Net and MTI-Net are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.architectures.heads.layers import Norm, normalisation


class Residual(nn.Module):
    """A residual block (He et al. 2016): two 3×3 convolutions, or a 1×1, 3×3, 1×1 bottleneck of a quarter of the width.

    A projection carries the input over where the width changes.
    """

    def __init__(self, before: int, after: int, norm: Norm, bottleneck: bool = False) -> None:
        super().__init__()
        inner = after // 4 if bottleneck else after
        kernels = (
            ((before, inner, 1), (inner, inner, 3), (inner, after, 1))
            if bottleneck
            else ((before, after, 3), (after, after, 3))
        )
        layers: list[nn.Module] = []
        for n, (a, b, kernel) in enumerate(kernels):
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=norm == "none"), normalisation(norm, b)]
            if n + 1 < len(kernels):
                layers.append(nn.ReLU(inplace=True))
        self.body = nn.Sequential(*layers)
        self.carry = (
            nn.Identity()
            if before == after
            else nn.Sequential(nn.Conv2d(before, after, 1, bias=norm == "none"), normalisation(norm, after))
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(self.body(x_BCHW) + self.carry(x_BCHW))


class SpatialAttention(nn.Module):
    """σ(W_g ⊗ F) ⊙ (W_t ⊗ F), 3×3 convolutions: a message that its own gate lets through where it matters.

    PAD-Net (Xu et al. 2018), equation 3, with the gate taken from the sender's features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.message = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.gate(x_BCHW).sigmoid() * self.message(x_BCHW)


class Distillation(nn.Module):
    """Every task adds the attended features of all others to its own: F_k + Σ_{t≠k} attention_{t→k}(F_t).

    The multi-modal distillation of PAD-Net, module C.
    """

    def __init__(self, tasks: Sequence[str], channels: int) -> None:
        super().__init__()
        self.messages = nn.ModuleDict(
            {to: nn.ModuleDict({t: SpatialAttention(channels) for t in tasks if t != to}) for to in tasks}
        )

    def forward(self, features: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Task → (B, C, H, W) of all tasks → the same of the wanted ones."""
        distilled = {}
        for to in wanted:
            x_BCHW = features[to]
            for source, block in self.messages[to].items():
                x_BCHW = x_BCHW + block(features[source])
            distilled[to] = x_BCHW
        return distilled


class SqueezeExcitation(nn.Module):
    """Channels weighted by a function of their means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        inner = max(channels // ratio, 1)
        self.weigh = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.weigh(x_BCHW.mean((-2, -1)))[..., None, None]
