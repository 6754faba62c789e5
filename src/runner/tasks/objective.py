"""A loss that the head computes itself: functions of the weights, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from runner.tasks.base import Task, down
from runner.tasks.metrics import KEPT, Metrics


class Objective(Task):
    """The first number that the head gives is the loss; the others are shown as metrics under their names.

    Args:
        names: of the other numbers; they have no direction.
        headline, head: see `Task`.
    """

    kind = "pooled"
    loss_kind = "regression"
    needs_labels: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        *,
        names: list[str],
        head: Mapping[str, Any],
        headline: Literal["value", "loss"] = "value",
    ) -> None:
        super().__init__(name, out_channels=1 + len(names), directions=down("value"), headline=headline, head=head)
        self.names = list(names)

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction[:, 0].float().sum()

    def loss_count(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), dtype=torch.float64)

    def example_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return prediction[:, 0].float()

    def example_counts(self, target: Tensor) -> Tensor:
        return torch.ones(len(target), dtype=torch.float64)

    def metrics(self) -> Metrics:
        return Metrics(
            {}, lambda prediction, target: {KEPT: prediction.double()}, self._summarise, keep=self.out_channels
        )

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(["value", *self.names], state[KEPT].mean(0), strict=True))

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        return " ".join(f"{x:.4g}" for x in value.reshape(-1)) if is_prediction else "as low as it gets"
