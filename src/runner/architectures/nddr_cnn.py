"""NDDR-CNN (Gao, Ma, Zhao, Liu, Yuille 2019, arXiv 1801.08297, section 3.2, figures 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.heads.layers import normalisation
from runner.architectures.parallel import ParallelNetworks, own_and_others
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction


class NDDR(ParallelNetworks):
    """After every stage the tasks' states are concatenated and each task reduces them to its next state.

    Neural discriminative dimensionality reduction: a 1×1 convolution from K·C to C channels, BatchNorm and ReLU, for
    every task and stage; the convolution starts as `own` times the task's own channels plus (1 - own) / (K - 1) times
    the same channels of each other task. Cross-stitch units are the special case of diagonal kernels.

    With own=1, norm=none and states that are not negative, these are the single-task networks at the start.

    Args:
        make_backbone: builds one backbone; called once per task.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        own: weight of a task's own channels at the start.
        norm: after the 1×1 convolution.
        activation: after that; "none" suits transformers, whose states are of both signs.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        own: Fraction = 0.9,
        norm: Literal["batch", "group", "none"] = "batch",
        activation: Literal["relu", "none"] = "relu",
    ) -> None:
        super().__init__(make_backbone, tasks, {"dense": dense_head, "pooled": pooled_head, "token": token_head})
        self.fusion = nn.ModuleList()
        for index in range(self.depth(list(tasks))):
            members, width = self.members(index), self.channels(index)
            rows = own_and_others(own, len(members))
            layers = nn.ModuleDict()
            for name, row in zip(members, rows, strict=True):
                reduce = nn.Conv2d(len(members) * width, width, 1, bias=norm == "none")
                with torch.no_grad():
                    reduce.weight.copy_(torch.cat([w * torch.eye(width) for w in row], dim=1)[:, :, None, None])
                    if reduce.bias is not None:
                        reduce.bias.zero_()
                last = nn.ReLU() if activation == "relu" else nn.Identity()
                layers[name] = nn.Sequential(reduce, normalisation(norm, width), last)
            self.fusion.append(layers)

    def exchange(self, index: int, states: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        all_BC = torch.cat([states[name] for name in self.members(index)], dim=1)
        shape = all_BC.shape
        maps_BCHW = all_BC.reshape(*shape, *[1] * (4 - len(shape)))  # vectors and tokens as maps of one cell or column
        mixed = {name: self.fusion[index][name](maps_BCHW) for name in wanted}
        return {name: x.reshape(shape[0], -1, *shape[2:]) for name, x in mixed.items()}
