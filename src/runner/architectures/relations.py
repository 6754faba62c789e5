"""Attention between the features of two tasks, over four kinds of context (ATRC, Brüggemann et al. 2021, figure 3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.heads.layers import Norm, conv_block, normalisation

Context = Literal["none", "global", "local", "target_label", "source_label"]


def make_context(kind: Context, channels: int, inner: int, norm: Norm, kernel: int) -> nn.Module:
    """The block of a kind of context but "none": (target, source, label maps) → (B, inner, H, W)."""
    if kind == "global":
        return GlobalContext(channels, inner, norm)
    if kind == "local":
        return LocalContext(channels, inner, norm, kernel)
    return LabelContext(channels, inner, norm)


def project(before: int, after: int, norm: Norm) -> nn.Sequential:
    """Two 1×1 convolutions with normalisation and ReLU, which make queries and keys."""
    return nn.Sequential(conv_block(before, after, 1, norm), conv_block(after, after, 1, norm))


class GlobalContext(nn.Module):
    """Attention to every place of the source at linear cost (Katharopoulos et al. 2020, arXiv 2006.16236).

    With positive queries and keys q, k: out_p = Σ_r (q_p · k_r) v_r / Σ_r q_p · k_r, whose sums over r do not depend
    on p.
    """

    def __init__(self, channels: int, inner: int, norm: Norm) -> None:
        super().__init__()
        self.query, self.key = (
            nn.Sequential(
                conv_block(channels, inner, 1, norm),
                nn.Conv2d(inner, inner, 1, bias=False),
                normalisation(norm, inner),
                nn.Softplus(),
            )
            for _ in range(2)
        )
        self.value = conv_block(channels, inner, 1, norm)

    def forward(self, target: Tensor, source: Tensor, labels_BLN: Tensor | None) -> Tensor:
        query, key, value = (
            layer(x).flatten(2) for layer, x in ((self.query, target), (self.key, source), (self.value, source))
        )
        total = key.sum(2, keepdim=True).transpose(1, 2) @ query
        attended = (value @ key.transpose(1, 2)) @ query / total.clamp_min(1e-12)
        return attended.unflatten(2, target.shape[-2:])


class LocalContext(nn.Module):
    """Attention to the kernel × kernel places of the source around each place of the target.

    Places outside of the map count as zeros. The neighbours are taken one offset after the other, so that no map of
    all of them is ever made.
    """

    def __init__(self, channels: int, inner: int, norm: Norm, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.query, self.key = project(channels, inner, norm), project(channels, inner, norm)
        self.value = conv_block(channels, inner, 1, norm)

    def forward(self, target: Tensor, source: Tensor, labels_BLN: Tensor | None) -> Tensor:
        height, width = target.shape[-2:]
        query = self.query(target) * self.key[-1][0].out_channels ** -0.5  # type: ignore[index]
        key, value = (F.pad(layer(source), [self.kernel // 2] * 4) for layer in (self.key, self.value))
        offsets = [(i, j) for i in range(self.kernel) for j in range(self.kernel)]
        scores = torch.stack([(query * key[..., i : i + height, j : j + width]).sum(1) for i, j in offsets], dim=1)
        weights = scores.softmax(1)
        out = torch.zeros_like(value[..., :height, :width])
        for n, (i, j) in enumerate(offsets):
            out = torch.addcmul(out, weights[:, n : n + 1], value[..., i : i + height, j : j + width])
        return out


class LabelContext(nn.Module):
    """Attention to one vector per label: the mean of the source's features over the places of the label.

    The places are those of a label of the target task (T-label) or of the source task (S-label): `labels_BLN` holds,
    per label, weights over all places that sum to one.
    """

    def __init__(self, channels: int, inner: int, norm: Norm) -> None:
        super().__init__()
        self.query, self.key = project(channels, inner, norm), project(channels, inner, norm)
        self.value = conv_block(channels, inner, 1, norm)

    def forward(self, target: Tensor, source: Tensor, labels_BLN: Tensor | None) -> Tensor:
        if labels_BLN is None:
            raise ValueError("the context of labels needs maps of them")
        means_BCL1 = (source.flatten(2) @ labels_BLN.transpose(1, 2)).unsqueeze(3)
        query, key, value = (
            layer(x).flatten(2) for layer, x in ((self.query, target), (self.key, means_BCL1), (self.value, means_BCL1))
        )
        weights_BNL = (query.transpose(1, 2) @ key * query.shape[1] ** -0.5).softmax(-1)
        return (value @ weights_BNL.transpose(1, 2)).unflatten(2, target.shape[-2:])


class Labels(nn.Module):
    """Label maps of a task, and the prediction that they amount to, which is supervised.

    Tasks of several classes: the logits are the prediction. One binary map: two labels, whose difference is the logit.
    Regression: `bins` labels, each with values of its own that are learned; the prediction is their mean under the
    softmax over labels (the authors cut the targets into bins and supervise those, which only depth and normals allow).
    """

    def __init__(self, before: int, out_channels: int, classes: bool, bins: int, norm: Norm) -> None:
        super().__init__()
        self.classes, self.binary = classes, classes and out_channels == 1
        count = 2 if self.binary else out_channels if classes else bins
        self.features = conv_block(before, before, 1, norm)
        self.logits = nn.Conv2d(before, count, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        self.values = None if classes else nn.Parameter(torch.randn(out_channels, count))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, N) weights over places for each label, and the prediction (B, C, H, W)."""
        logits = self.logits(self.features(x_BCHW))
        places = logits.flatten(2).softmax(-1)
        if self.binary:
            return places, logits[:, 1:] - logits[:, :1]
        if self.values is None:
            return places, logits
        return places, torch.einsum("blhw,cl->bchw", logits.softmax(1), self.values.to(logits.dtype))
