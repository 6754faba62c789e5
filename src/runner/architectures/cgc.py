"""CGC, customized gate control (Tang, Liu, Zhao, Gong 2020, RecSys, equations 1 to 4, figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from runner.architectures.ple import PLE
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt


class CGC(PLE):
    """Shared experts and experts of each task, mixed by a gate per task that sees the shared and its own ones.

    One level of PLE. Without experts of their own (task_experts=0) this is MMoE.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        shared_experts, task_experts: numbers of experts, those of a task per task.
        hidden: widths of an expert's layers on vectors and tokens.
        channels: of its 1×1 and 3×3 convolution on every map.
        norm: of experts on maps.
        dropout: in experts on vectors and tokens.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        shared_experts: PositiveInt = 2,
        task_experts: NonNegativeInt = 2,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group", "none"] = "group",
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(
            make_backbone,
            tasks,
            dense_head=dense_head,
            pooled_head=pooled_head,
            token_head=token_head,
            levels=1,
            shared_experts=shared_experts,
            task_experts=task_experts,
            hidden=hidden,
            channels=channels,
            norm=norm,
            dropout=dropout,
        )
