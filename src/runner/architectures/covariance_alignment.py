"""Alignment matrices between each task's input and the shared module (Wu, Zhang and Ré 2020, arXiv 2005.00944,
algorithm 1, "covariance alignment").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.backbones.staged import Staged, require_stages
from runner.types import Group


class CovarianceAlignment(Architecture):
    """Hard sharing in which every task's embedded input is turned by a square matrix of its own first.

    Task i is trained on L(g(X_i R_i B) A_i, y_i): X_i what the backbone's first stage reads (the embedded columns of a
    table, the stem's map of an image), R_i (C, C) from the identity, B the stages that all tasks share, A_i the head.
    The paper's analysis has tasks hurt one another where the covariances of their inputs differ, which R_i can undo; it
    learns A_i, B and R_i by one gradient descent, as here. The authors align BERT behind its word embeddings; text
    backbones have no stages here.

    The stages run once per task. Normalisation by batch statistics averages over all tasks' inputs in evaluation.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"

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
        require_stages(self.backbone, type(self).__name__)
        assert isinstance(self.backbone, Staged)
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds = {name: task.kind for name, task in tasks.items()}
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )
        width = self.backbone.entry_channels()
        self.alignments = nn.ParameterDict({name: torch.eye(width) for name in tasks})

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        entry, begun = self.backbone.begin(group.inputs)
        predictions = {}
        for name in tasks:
            x = torch.einsum("bc...,cd->bd...", entry, self.alignments[name].to(entry.dtype))
            run = replace(begun, switches=list(begun.switches))  # every pass adds its own
            states = []
            for index in range(len(self.backbone.stage_channels)):
                x = self.backbone.stage(index, x, run)[1]
                states.append(x)
            predictions[name] = self.heads[name](self.backbone.collect(states, run, self.kinds[name]))
        return predictions

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]
