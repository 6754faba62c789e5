"""One number per example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.config.kinds import PositiveFloat
from runner.tasks.base import Elementwise, down, up, where_labelled
from runner.tasks.binary import single
from runner.tasks.metrics import KEPT, Metrics, correlation, mid_ranks


class Regression(Elementwise):
    """A number, standardised for the loss: the head predicts (y - shift) / scale.

    loss_sum sums ℓ(d) with d = x - (y - shift)/scale over labelled examples, loss_count counts them. l1: |d|; l2: d²;
    smooth_l1: d²/2 up to 1, |d| - ½ above. Metrics in the unit of the targets: `mae`, `rmse`; and `pearson`,
    `spearman` (equal values share their mean rank), which are NaN where one side is constant.

    Args:
        loss: see above.
        shift, scale: e.g. mean and standard deviation of the training targets.
        headline, head: see `Task`.
    """

    kind = "pooled"
    loss_kind = "regression"

    def __init__(
        self,
        name: str,
        *,
        loss: Literal["l1", "l2", "smooth_l1"] = "l2",
        shift: float = 0.0,
        scale: PositiveFloat = 1.0,
        headline: Literal["mae", "rmse", "pearson", "spearman", "loss"] = "mae",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = down("mae", "rmse") | up("pearson", "spearman")
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        self.loss = loss
        self.shift = shift
        self.scale = scale

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        x = single(self, prediction, target).float()
        labelled = ~target.isnan()
        wanted = (torch.where(labelled, target, 0.0).float() - self.shift) / self.scale
        function = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[self.loss]
        return where_labelled(function(x, wanted, reduction="none"), labelled)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        return Metrics({}, self._observe, self._summarise, keep=2)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        labelled = ~target.isnan()
        value = single(self, prediction, target)[labelled].double() * self.scale + self.shift
        return {KEPT: torch.stack([value, target[labelled].double()], 1)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        predicted, true = state[KEPT].unbind(1)
        error = predicted - true
        return {
            "mae": error.abs().mean(),
            "rmse": error.square().mean().sqrt(),
            "pearson": correlation(predicted, true),
            "spearman": correlation(mid_ranks(predicted), mid_ranks(true)),
        }

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        return {"": float(prediction.reshape(-1)[0]) * self.scale + self.shift}

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        number = float(value.reshape(-1)[0])
        if is_prediction:
            number = number * self.scale + self.shift
        elif np.isnan(number):
            return "no label"
        return f"{number:.4g}"
