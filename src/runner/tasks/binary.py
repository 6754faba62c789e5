"""Yes or no for whole examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.config.kinds import PositiveFloat
from runner.errors import RunFailed
from runner.tasks.base import Elementwise, Task, sigmoid, up, where_labelled
from runner.tasks.metrics import KEPT, Metrics, area_under_roc, average_precision


class Binary(Elementwise):
    """One logit per example, binary cross-entropy.

    loss_sum = Σ p·y·(-log σ(x)) + (1-y)·(-log(1-σ(x))) over labelled examples, loss_count counts them (as
    `torch.nn.BCEWithLogitsLoss(pos_weight=p)`). Metrics: `auroc`, `average_precision` (exact, all thresholds), and at
    probability 0.5 `accuracy` and `f1` of the positive class.

    Args:
        positive_weight: p, how much more a positive example counts.
        headline, head: see `Task`.
    """

    kind = "pooled"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        positive_weight: PositiveFloat = 1.0,
        headline: Literal["auroc", "average_precision", "accuracy", "f1", "loss"] = "auroc",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = up("auroc", "average_precision", "accuracy", "f1")
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        self.positive_weight = positive_weight

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return bce(single(self, prediction, target), target, self.positive_weight)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        return Metrics({}, self._observe, self._summarise, keep=2)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        labelled = ~target.isnan()
        logits = single(self, prediction, target)
        return {KEPT: torch.stack([logits[labelled].double(), target[labelled].double()], 1)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, labels = state[KEPT].unbind(1)
        scores = torch.sigmoid(logits)
        said, true = logits >= 0, labels > 0.5
        return {
            "auroc": area_under_roc(scores, labels),
            "average_precision": average_precision(scores, labels),
            "accuracy": (said == true).double().mean(),
            "f1": 2 * (said & true).sum() / (said.sum() + true.sum()),
        }

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        logit = prediction.reshape(-1)[0]
        return {"": "yes" if logit >= 0 else "no", "=yes": float(sigmoid(logit))}

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        if is_prediction:
            share = 0.5 * (1.0 + np.tanh(0.5 * float(value.reshape(-1)[0])))
            return f"{'yes' if share >= 0.5 else 'no'} ({max(share, 1 - share):.2f})"
        return "no label" if np.isnan(value) else ("yes" if value > 0.5 else "no")


def bce(logits: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy of every entry of `target`, in float32; 0 where it is NaN."""
    labelled = ~target.isnan()
    truth = torch.where(labelled, target, 0.0).float()
    losses = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return where_labelled(losses * (1.0 + (positive_weight - 1.0) * truth), labelled)


def single(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    """(B, 1) → (B,), after a check that this is what the target needs.

    Raises:
        RunFailed: other shapes.
    """
    if prediction.shape != (len(target), 1) or target.ndim != 1:
        raise RunFailed(
            f"task '{task.name}': the head predicts {tuple(prediction.shape)} and the target is {tuple(target.shape)}",
            "one number per example is needed: (B, 1) and (B,)",
        )
    return prediction[:, 0]
