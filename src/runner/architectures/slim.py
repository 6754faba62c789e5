"""Layers that run at several widths with one set of weights (Yu et al. 2019, Slimmable networks, arXiv 1812.08928).

A layer of C channels at width r uses the first r·C of them. Normalisations keep running statistics of their own for
every width, since those differ (switchable BatchNorm); scales and shifts are shared, so that every width has all of its
parameters inside those of the widest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.neck import ChannelNorm


class Width:
    """How wide a part of a network runs now.

    Args:
        ratios: the widths it has, from 1 down.
        follow: layers take the width from what they are given, so that what is computed again for a checkpointed
            block has the width of the first time; else it is `now` that counts.
        outer: of the part that this one reads; statistics differ with both.

    Attributes:
        now: index into `ratios`.
    """

    def __init__(self, ratios: Sequence[float], follow: bool, outer: Width | None = None) -> None:
        self.ratios, self.follow, self.outer, self.now = tuple(ratios), follow, outer, 0

    def kept(self, channels: int) -> int:
        """Channels in use of so many."""
        return kept(channels, self.ratios[self.now])

    def given(self, used: int, channels: int) -> None:
        """A layer got `used` of its `channels`."""
        if self.follow:
            self.now = next(i for i, ratio in enumerate(self.ratios) if kept(channels, ratio) == used)

    @property
    def contexts(self) -> int:
        """How many statistics a BatchNorm keeps."""
        return len(self.ratios) * (len(self.outer.ratios) if self.outer is not None else 1)

    @property
    def context(self) -> int:
        """Which of them is in use; 0 where everything is at its full width."""
        return self.now + len(self.ratios) * (self.outer.now if self.outer is not None else 0)


def kept(channels: int, ratio: float) -> int:
    """Channels in use of so many at a width."""
    return max(1, round(channels * ratio))


class Slim:
    """What the layers below have besides those of torch.

    Attributes:
        width: of the part of the network they are in.
        whole_in: they are always given all of their channels, and do not tell the width by them.
        whole_out: they always make all of their channels.
        blocks: equal parts that the input is concatenated of.
    """

    width: Width
    whole_in: bool
    whole_out: bool
    blocks: int

    def made(self, used: int, before: int, after: int) -> int:
        """Channels to make from `used` of `before`."""
        if not self.whole_in:
            self.width.given(used, before)
        return after if self.whole_out else self.width.kept(after)


class SlimLinear(Slim, nn.Linear):
    """The first rows and columns of the matrix."""

    def forward(self, x: Tensor) -> Tensor:
        used, before = x.shape[-1], self.in_features
        after = self.made(used, before, self.out_features)
        weight = self.weight[:after]
        if used < before:
            weight = weight.unflatten(1, (self.blocks, -1))[..., : used // self.blocks].flatten(1)
        return F.linear(x, weight, None if self.bias is None else self.bias[:after])


class SlimConv2d(Slim, nn.Conv2d):
    """The first kernels on the first channels; depthwise where it was."""

    def forward(self, x: Tensor) -> Tensor:
        used = x.shape[1]
        after = self.made(used, self.in_channels, self.out_channels)
        bias = None if self.bias is None else self.bias[:after]
        depthwise = self.groups > 1
        weight = self.weight[:after] if depthwise else self.weight[:after, :used]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, used if depthwise else 1)


class SlimConvTranspose2d(Slim, nn.ConvTranspose2d):
    """The first kernels on the first channels."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        after = self.made(x.shape[1], self.in_channels, self.out_channels)
        weight, bias = self.weight[: x.shape[1], :after], None if self.bias is None else self.bias[:after]
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding, 1, self.dilation)


class SlimBatchNorm2d(Slim, nn.BatchNorm2d):
    """Running statistics per width; those of the full width are where BatchNorm has them."""

    slim_mean: Tensor
    slim_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        used = x.shape[1]
        self.made(used, self.num_features, self.num_features)
        at = self.width.context
        mean = self.running_mean if at == 0 else self.slim_mean[at - 1]
        var = self.running_var if at == 0 else self.slim_var[at - 1]
        assert mean is not None and var is not None
        if self.training and at == 0:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return F.batch_norm(
            x,
            mean[:used],
            var[:used],
            self.weight[:used],
            self.bias[:used],
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class SlimGroupNorm(Slim, nn.GroupNorm):
    """Groups of as many channels as before where that comes out even."""

    def forward(self, x: Tensor) -> Tensor:
        used = x.shape[1]
        self.made(used, self.num_channels, self.num_channels)
        size = self.num_channels // self.num_groups
        groups = used // size if used % size == 0 else math.gcd(used, self.num_groups)
        return F.group_norm(x, groups, self.weight[:used], self.bias[:used], self.eps)


class SlimLayerNorm(Slim, nn.LayerNorm):
    """Over the channels in use, the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        used, before = x.shape[-1], self.normalized_shape[0]
        self.made(used, before, before)
        weight, bias = (
            p.unflatten(0, (self.blocks, -1))[:, : used // self.blocks].flatten() for p in (self.weight, self.bias)
        )
        return F.layer_norm(x, (used,), weight, bias, self.eps)


class SlimChannelNorm(SlimLayerNorm):
    """Over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


KINDS: dict[type, type] = {
    nn.Linear: SlimLinear,
    nn.Conv2d: SlimConv2d,
    nn.ConvTranspose2d: SlimConvTranspose2d,
    nn.BatchNorm2d: SlimBatchNorm2d,
    nn.GroupNorm: SlimGroupNorm,
    nn.LayerNorm: SlimLayerNorm,
    ChannelNorm: SlimChannelNorm,
}
HEADS = re.compile(r"(^|\.)(q_proj|k_proj|v_proj|query|key|value|qkv)$")
"""Inside attention: layers that make all heads at every width, and whose counterpart reads them all."""


def slim(part: nn.Module, width: Width, classifier: int | None = None) -> None:
    """Turn the layers of a part into slimmable ones, in place; at full width it computes what it did.

    Args:
        part: a backbone or a head.
        width: by which it is controlled.
        classifier: channels of the part's last layer, if it must always make all of them.
    """
    attention = [name for name, module in part.named_modules() if "Attention" in type(module).__name__]
    merging = [name for name, module in part.named_modules() if "PatchMerging" in type(module).__name__]
    last: Any = None
    for name, module in list(part.named_modules()):
        kind = KINDS.get(type(module))
        if kind is None:
            continue
        within = isinstance(module, nn.Linear) and any(name.startswith(f"{outer}.") for outer in attention)
        module.__class__ = kind
        made: Any = module
        made.width, made.blocks = width, 4 if any(name.startswith(f"{outer}.") for outer in merging) else 1
        made.whole_out = within and HEADS.search(name) is not None
        made.whole_in = not width.follow or (within and not made.whole_out) or getattr(made, "in_channels", 0) == 3
        after = getattr(made, "out_channels", None) or getattr(made, "out_features", None)
        last = made if after is not None and after == classifier else last
        if isinstance(made, SlimBatchNorm2d) and width.contexts > 1:
            for which, start in (("slim_mean", made.running_mean), ("slim_var", made.running_var)):
                made.register_buffer(which, start.detach().expand(width.contexts - 1, -1).clone())
    if last is not None:
        last.whole_out = True
