"""Implicit knowledge of YOLOR (Wang, Yeh, Liao 2021, arXiv 2105.04206, section 4, figures 5 and 6; Chang et al. 2023,
arXiv 2309.16921, for its use across tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.config.kinds import NonNegativeFloat
from runner.types import Features, Group


class YolorImplicit(Architecture):
    """Hard sharing in which every task adds and multiplies learned vectors, the same for all inputs.

    - alignment: features + z, one vector z of each level's (or of the vector's) width per task, before the head;
    - refinement: predictions ⊙ z, one number per channel per task, after it.

    z is added from N(0, deviation²) and multiplied from N(1, deviation²). With deviation 0 it starts as hard sharing.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        align: what is done to features.
        refine: what is done to predictions.
        deviation: of the vectors at the start.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        align: Literal["add", "multiply", "none"] = "add",
        refine: Literal["add", "multiply", "none"] = "multiply",
        deviation: NonNegativeFloat = 0.02,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds = {name: task.kind for name, task in tasks.items()}
        self.align_by, self.refine_by = align, refine
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )

        def implicit(width: int, how: str) -> Tensor:
            return (0.0 if how == "add" else 1.0) + deviation * torch.randn(width)

        spec = self.backbone.spec
        self.align = nn.ModuleDict()
        self.refine = nn.ParameterDict()
        for name, task in tasks.items():
            widths = spec.channels if task.kind == "dense" else (spec.dim,)
            if align != "none":
                self.align[name] = nn.ParameterList(implicit(width, align) for width in widths)
            if refine != "none":
                self.refine[name] = implicit(task.out_channels, refine)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        features = self.backbone(group.inputs)
        predictions = {}
        for task in tasks:
            prediction = self.heads[task](self._aligned(task, features))
            if task in self.refine:
                prediction = _apply(self.refine_by, prediction, self.refine[task], self.kinds[task])
            predictions[task] = prediction
        return predictions

    def _aligned(self, task: str, features: Features) -> Features:
        if task not in self.align:
            return features
        kind, vectors = self.kinds[task], list(self.align[task])
        if kind == "dense":
            levels = zip(features.pyramid or [], vectors, strict=True)
            aligned = [_apply(self.align_by, level_BCHW, z, kind) for level_BCHW, z in levels]
            return Features(pyramid=aligned, size=features.size)
        if kind == "pooled":
            return Features(pooled=_apply(self.align_by, features.pooled, vectors[0], kind), size=features.size)
        return Features(tokens=_apply(self.align_by, features.tokens, vectors[0], kind), mask=features.mask)

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


def _apply(how: str, x: Any, z: Tensor, kind: str) -> Tensor:
    z = z.view(-1, 1, 1) if kind == "dense" else z
    return x + z if how == "add" else x * z
