"""Blocks of visual Mamba decoders: the scan over an image in four directions, and the block around it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.selective_scan import selective_scan

DIRECTIONS = 4


class Scan2D(nn.Module):
    """SS2D (Liu et al. 2024, VMamba, arXiv 2401.10166, section 4.2): selective scans along rows and columns, both ways.

    Each direction has its own parameters; what the four scans give is summed at every pixel and normalised. Δ, B and C
    are made from the map itself, or from another one (the cross-task scan of MTMamba++).

    Args:
        channels: width of the maps.
        rank: of the projection that makes Δ.
        states: N, numbers that a channel remembers.
    """

    def __init__(self, channels: int, rank: int, states: int) -> None:
        super().__init__()
        self.sizes = (rank, states, states)
        bound = channels**-0.5
        self.project = nn.Parameter(torch.empty(DIRECTIONS, sum(self.sizes), channels).uniform_(-bound, bound))
        self.delta = nn.Parameter(torch.empty(DIRECTIONS, rank, channels).uniform_(-(rank**-0.5), rank**-0.5))
        # softplus(bias) is between 0.001 and 0.1, evenly on a logarithmic scale
        step = torch.exp(math.log(0.001) + torch.rand(DIRECTIONS, channels) * math.log(0.1 / 0.001))
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        rates = torch.arange(1, states + 1, dtype=torch.float32).log()
        self.log_a = nn.Parameter(rates[:, None].repeat(DIRECTIONS, 1, channels))
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BHWD: Tensor, guide_BHWD: Tensor | None = None) -> Tensor:
        """(B, H, W, D) → the same; Δ, B and C come from `guide_BHWD` where there is one."""
        width = x_BHWD.shape[2]
        guide_BHWD = x_BHWD if guide_BHWD is None else guide_BHWD
        made = F.linear(guide_BHWD, self.project.flatten(0, 1)).unflatten(-1, (DIRECTIONS, -1))
        rank, b, c = made.split(self.sizes, dim=-1)
        delta = torch.einsum("bhwkr,krd->bhwkd", rank, self.delta)
        repeated = x_BHWD.unsqueeze(3).expand(-1, -1, -1, DIRECTIONS, -1)
        x, delta, b, c = (in_directions(t) for t in (repeated, delta, b, c))
        y_BLKD = selective_scan(x, delta, self.bias, -torch.exp(self.log_a.float()), b, c, self.skip)
        return self.norm(from_directions(y_BLKD, width))


def in_directions(x_BHWKC: Tensor) -> Tensor:
    """(B, L, K, C): pixels by rows, by columns, and both backwards, the k-th for direction k."""
    rows, columns, rows_back, columns_back = x_BHWKC.unbind(3)
    forwards = [rows.flatten(1, 2), columns.transpose(1, 2).flatten(1, 2)]
    backwards = [rows_back.flatten(1, 2).flip(1), columns_back.transpose(1, 2).flatten(1, 2).flip(1)]
    return torch.stack([*forwards, *backwards], dim=2)


def from_directions(y_BLKD: Tensor, width: int) -> Tensor:
    """(B, H, W, D): what the four directions give at each pixel, summed."""
    rows, columns, rows_back, columns_back = y_BLKD.unbind(2)
    by_rows = (rows + rows_back.flip(1)).unflatten(1, (-1, width))
    return by_rows + (columns + columns_back.flip(1)).unflatten(1, (width, -1)).transpose(1, 2)


class Mixer(nn.Module):
    """Projection to a wider map, depth-wise 3×3 convolution, SiLU, and the scan of it: (B, H, W, C) → (B, H, W, D).

    Args:
        before: C. channels: of the tokens it serves; D and the rank of Δ follow from it.
        expansion: D / channels.
        gated: whether the projection also makes a gate of D channels for the result.
        guided: whether Δ, B and C come from another map.
    """

    def __init__(
        self, before: int, channels: int, expansion: int, states: int, gated: bool = False, guided: bool = False
    ) -> None:
        super().__init__()
        inner = expansion * channels
        self.inner, self.gated = inner, gated
        self.enter = nn.Linear(before, inner * (2 if gated else 1), bias=False)
        self.guide = nn.Linear(channels, inner, bias=False) if guided else None
        self.local = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = Scan2D(inner, math.ceil(channels / 16), states)

    def forward(self, x_BHWC: Tensor, guide_BHWC: Tensor | None = None) -> Tensor:
        entered = self.enter(x_BHWC)
        x, gate = entered.chunk(2, dim=-1) if self.gated else (entered, None)
        x = F.silu(self.local(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        guide = self.guide(guide_BHWC) if self.guide is not None else None
        y = self.scan(x, guide)
        return y if gate is None else y * F.silu(gate)


class GatedMixer(nn.Module):
    """A gated `Mixer` and the projection back: (B, H, W, C) → the same; the operator of the Mamba block."""

    def __init__(self, channels: int, expansion: int, states: int, guided: bool = False) -> None:
        super().__init__()
        self.mix = Mixer(channels, channels, expansion, states, gated=True, guided=guided)
        self.leave = nn.Linear(expansion * channels, channels, bias=False)

    def forward(self, x_BHWC: Tensor, guide_BHWC: Tensor | None = None) -> Tensor:
        return self.leave(self.mix(x_BHWC, guide_BHWC))


class MambaBlock(nn.Module):
    """x + DropPath(mixer(LayerNorm(x))), the self-task block of MTMamba (figure 3)."""

    def __init__(self, channels: int, expansion: int, states: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix = GatedMixer(channels, expansion, states)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + self.drop_path(self.mix(self.norm(x_BHWC)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): a branch is left out for some examples of a batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class Expand(nn.Module):
    """`factor` times the resolution by a linear layer whose outputs are laid out as pixels, then LayerNorm.

    Patch expanding of Swin-Unet (Cao et al. 2021, arXiv 2105.05537, section 3.4): (B, H, W, C) → (B, f H, f W, C').
    """

    def __init__(self, before: int, after: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.widen = nn.Linear(before, factor**2 * after, bias=False)
        self.norm = nn.LayerNorm(after)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        f = self.factor
        wide = self.widen(x_BHWC).unflatten(-1, (f, f, -1))
        return self.norm(wide.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))
