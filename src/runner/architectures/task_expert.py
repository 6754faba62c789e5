"""TaskExpert (Ye and Xu 2023, arXiv 2307.15324): a task's features are assembled from experts, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.heads.layers import Norm, normalisation
from runner.architectures.heads.resize import upsample
from runner.architectures.layer_maps import keep_layers, layer_features
from runner.backbones.base import Backbone
from runner.backbones.neck import ChannelNorm
from runner.config.kinds import PositiveInt
from runner.specs import FeatureSpec
from runner.types import Features

FINAL_STRIDE = 4


class TaskExpert(Decoder):
    """Memorial mixture of experts at several layers of the backbone (figure 2).

    Every task has a feature memory, a map that starts as one learned vector. At each layer (`MemorialExperts`) experts
    decompose the backbone's map into task-generic features; each task's gate, which sees the image, weighs them and
    what is read from the memory at every place; the result is written to the memory. The memory after the last layer
    makes the prediction.

    Layers are the quarters of a plain transformer (as published), or the levels of a pyramid, brought to the finest of
    them. The code was not published: kernel sizes of experts and gates, and how the memory is written, are choices
    made here where the paper leaves them open.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        experts: at each layer, besides the memory.
        channels: width of experts and memory.
        norm: of the convolutions.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        experts: PositiveInt = 5,
        channels: PositiveInt = 512,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        if not self.dense:
            self.make_heads(self.backbone.spec)
            return
        spec = keep_layers(self.backbone)
        self.strides = spec.strides
        self.memory = nn.ParameterDict({t: nn.Parameter(0.02 * torch.randn(channels)) for t in self.dense})
        self.layers = nn.ModuleList(
            MemorialExperts(self.dense, width, experts, channels, norm) for width in spec.channels
        )
        self.stride = min(FINAL_STRIDE, self.strides[0])
        self.project = nn.ModuleDict({t: _block(channels, channels, 3, norm) for t in self.dense})
        self.make_heads(FeatureSpec((channels,), (self.stride,), 0))

    def features(self, inputs: dict[str, Tensor]) -> Features:
        return layer_features(self.backbone, inputs) if self.dense else self.backbone(inputs)

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        levels = features.pyramid or []
        grid = levels[0].shape[-2:]
        batch = len(levels[0])
        memory = {t: self.memory[t].view(1, -1, 1, 1).expand(batch, -1, *grid) for t in tasks}
        for level, stride, layer in zip(levels, self.strides, self.layers, strict=True):
            memory = layer(upsample(level, stride // self.strides[0], grid), memory)
        size = features.size or (0, 0)
        cells = (-(-size[0] // self.stride), -(-size[1] // self.stride))
        factor = self.strides[0] // self.stride
        return {t: [self.project[t](upsample(memory[t], factor, cells))] for t in tasks}, {}


class MemorialExperts(nn.Module):
    """Experts of one layer, and every task's gate, reading and writing (section 3.2).

    experts E_i = f_i(F); the memory as one more expert, E_0 = W_r M_t; scores by the gate of the task from what it
    remembers and what the experts see on average, here and in the whole image; D_t = Σ_i softmax(scores)_i E_i;
    M_t ← LayerNorm(M_t + W_w D_t).
    """

    def __init__(self, tasks: Sequence[str], before: int, experts: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.enter = _block(before, channels, 1, norm)
        self.experts = nn.ModuleList(_block(channels, channels, 3, norm) for _ in range(experts))
        self.gates = nn.ModuleDict({t: Gate(channels, 1 + experts, norm) for t in tasks})
        self.read = nn.ModuleDict({t: nn.Conv2d(channels, channels, 1) for t in tasks})
        self.write = nn.ModuleDict({t: nn.Conv2d(channels, channels, 1) for t in tasks})
        self.norms = nn.ModuleDict({t: ChannelNorm(channels) for t in tasks})

    def forward(self, x_BCHW: Tensor, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A layer's map and the memory (B, C, H, W) of the asked-for tasks → their new memory."""
        entered = self.enter(x_BCHW)
        generic = torch.stack([expert(entered) for expert in self.experts], dim=1)
        seen = generic.mean(1)
        written = {}
        for task, before in memory.items():
            scores = self.gates[task](before, seen).softmax(1).unsqueeze(2)
            decoded = scores[:, 0] * self.read[task](before) + (scores[:, 1:] * generic).sum(1)
            written[task] = self.norms[task](before + self.write[task](decoded))
        return written


class Gate(nn.Module):
    """Scores of experts at every place, from a narrow 3×3 convolution and the means over the image."""

    def __init__(self, channels: int, experts: int, norm: Norm) -> None:
        super().__init__()
        inner = max(channels // 4, 8)
        self.enter = nn.Conv2d(2 * channels, inner, 1)
        self.local = _block(inner, inner, 3, norm)
        self.whole = nn.Linear(inner, inner)
        self.score = nn.Conv2d(inner, experts, 1)

    def forward(self, memory_BCHW: Tensor, seen_BCHW: Tensor) -> Tensor:
        """(B, experts, H, W)."""
        x = self.enter(torch.cat([memory_BCHW, seen_BCHW], dim=1))
        return self.score(self.local(x) + self.whole(x.mean((-2, -1)))[..., None, None])


def _block(before: int, after: int, kernel: int, norm: Norm) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, normalisation(norm, after), nn.GELU())
