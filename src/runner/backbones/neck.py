"""Parts that turn a trunk's maps into a pyramid: norms per level, and the pyramid of a plain ViT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LevelNorms(nn.Module):
    """One LayerNorm per level, for trunks whose stages end without one (as Swin and ConvNeXt do in UPerNet)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(c) for c in channels)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop what only other levels need; their maps pass as they are."""
        for index in set(range(len(self.norms))).difference(indices):
            self.norms[index] = nn.Identity()

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        return [norm(level_BCHW) for norm, level_BCHW in zip(self.norms, levels, strict=True)]


class PlainPyramid(nn.Module):
    """Four maps (B, D, H/p, W/p) → a pyramid of D/4, D/2, D and D channels at strides p/4, p/2, p and 2p.

    The resampling of ViTDet's simple feature pyramid (Li et al. 2022, arXiv 2203.16527, section 3): transposed
    convolutions up, max-pooling down. Its 1×1 convolutions to a common width are left to the head.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up4: nn.Module = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )
        self.up2: nn.Module = nn.ConvTranspose2d(dim, dim // 2, 2, 2)
        self.down = nn.MaxPool2d(2)
        self.channels = (dim // 4, dim // 2, dim, dim)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop what only other levels need; their maps pass as they are."""
        if 0 not in indices:
            self.up4 = nn.Identity()
        if 1 not in indices:
            self.up2 = nn.Identity()

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        quarter, half, same, double = taps
        return [self.up4(quarter), self.up2(half), same, self.down(double)]
