"""What decoder-focused architectures share: one backbone, features of every dense task, heads; others beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features, Group, Prediction, Supervised

Maps = dict[str, list[Tensor]]
"""Task → maps (B, C, H, W)."""


class Decoder(Architecture):
    """Dense tasks exchange information after the backbone; pooled and token tasks have plain heads on it.

    A subclass builds its modules after `super().__init__` (if `self.dense` names a task), calls `make_dense_heads` with
    the shapes of the features it makes for each task, and implements `decode`.

    Attributes:
        dense: names of the dense tasks, in order; empty where the mixture has none.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        self.backbone.restrict(task.kind for task in tasks.values())
        self.tasks = dict(tasks)
        self.dense = [name for name, task in tasks.items() if task.kind == "dense"]
        self._defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict()

    def make_heads(self, dense: FeatureSpec) -> None:
        """All heads, in the order of the tasks; those of dense tasks read features of the given shapes."""
        for name, task in self.tasks.items():
            spec = dense if task.kind == "dense" else self.backbone.spec
            self.heads[name] = make_head(spec, task, self._defaults)

    def keep_coarsest(self, count: int) -> None:
        """Read the pyramid's coarsest levels only, each half as fine as the one before it.

        Raises:
            UserError: the backbone's levels are not like that.
        """
        strides = self.backbone.spec.strides[-count:]
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)) or len(strides) < count:
            shown = ", ".join(map(str, self.backbone.spec.strides))
            raise UserError(
                f"{type(self).__name__} needs {count} levels whose strides double; this backbone's are {shown}",
                "leave backbone.output_stride at 32, or choose another backbone",
                "runner ls backbone",
            )
        if len(self.backbone.spec.strides) > count:
            levels = range(len(self.backbone.spec.strides))
            self.backbone.keep_levels(levels[-count:])

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        """Features of the asked-for dense tasks, and their intermediate predictions at the image's size.

        Args:
            features: of the backbone.
            tasks: dense tasks; at least one. Other dense tasks may be needed to make their features.

        Returns:
            task → levels of its pyramid, fine to coarse, as announced to `make_heads`; and task → predictions
            (B, C, H, W) that are supervised beside the final one, empty lists where `self.supervised` is False.
        """
        raise NotImplementedError

    def features(self, inputs: dict[str, Tensor]) -> Features:
        """What the backbone makes of the inputs; a decoder that reads something else of it says so here."""
        return self.backbone(inputs)

    @property
    def supervised(self) -> bool:
        """Whether intermediate predictions are wanted: where gradients are on. Evaluation needs the final ones only."""
        return torch.is_grad_enabled()

    auxiliary_weight: float = 1.0

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Prediction]:
        if not tasks:
            return {}
        features = self.features(group.inputs)
        asked = [name for name in tasks if name in self.dense]
        levels, between = self.decode(features, asked) if asked else ({}, {})
        predictions: dict[str, Prediction] = {}
        for name in tasks:
            if name not in levels:
                predictions[name] = self.heads[name](features)
                continue
            made = self.heads[name](Features(pyramid=levels[name], size=features.size))
            extra = tuple((self.auxiliary_weight, tensor) for tensor in between.get(name, []))
            predictions[name] = Supervised(made, extra) if extra and self.auxiliary_weight else made
        return predictions

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]
