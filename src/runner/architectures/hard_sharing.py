"""Hard parameter sharing: one backbone, one head per task (Caruana 1997)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.types import Group


class HardSharing(Architecture):
    """All tasks share the whole backbone; it runs once per group.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
    """

    representation = "backbone"

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        self.backbone.restrict(task.kind for task in tasks.values())
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        features = self.backbone(group.inputs)
        return {task: self.heads[task](features) for task in tasks}

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]
