"""Several yes-or-no labels per example, each of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.tasks.base import Elementwise, check_names, same_shape, sigmoid, up
from runner.tasks.binary import bce
from runner.tasks.metrics import KEPT, Metrics, area_under_roc


class MultiLabel(Elementwise):
    """One logit per label, binary cross-entropy averaged over labelled entries.

    loss_sum sums over labelled entries (example and label), loss_count counts them. Metrics at probability 0.5:
    `f1` (averaged over the labels that occur in predictions or targets), `f1_micro`, `accuracy` over entries; and
    `auroc`, exact, averaged over the labels of which both values occur.

    Args:
        num_classes: labels per example.
        positive_weight: how much more a positive entry counts.
        class_names: for panels; numbers otherwise.
        headline, head: see `Task`.
    """

    kind = "pooled"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        num_classes: PositiveInt,
        positive_weight: PositiveFloat = 1.0,
        class_names: list[str] | None = None,
        headline: Literal["f1", "f1_micro", "accuracy", "auroc", "loss"] = "f1",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = up("f1", "f1_micro", "accuracy", "auroc")
        super().__init__(name, out_channels=num_classes, directions=directions, headline=headline, head=head)
        self.num_classes = num_classes
        self.positive_weight = positive_weight
        self.class_names = check_names(name, class_names, num_classes)

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        same_shape(self, prediction, target)
        return bce(prediction, target, self.positive_weight)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        return Metrics({}, self._observe, self._summarise, keep=2 * self.num_classes)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        same_shape(self, prediction, target)
        return {KEPT: torch.cat([prediction, target.to(prediction.dtype)], 1)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, targets = state[KEPT].split(self.num_classes, dim=1)
        labelled = ~targets.isnan()
        said, true = (logits >= 0) & labelled, (targets > 0.5) & labelled
        right, total = (said & true).sum(0).double(), (said.sum(0) + true.sum(0)).double()
        areas = [
            area_under_roc(torch.sigmoid(logits[labelled[:, i], i]), targets[labelled[:, i], i])
            for i in range(self.num_classes)
        ]
        return {
            "f1": (2 * right / total)[total > 0].mean(),
            "f1_micro": 2 * right.sum() / total.sum(),
            "accuracy": ((said == true) & labelled).sum() / labelled.sum(),
            "auroc": torch.stack([area.double() for area in areas]).nanmean(),
        }

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        shares = dict(zip(self.class_names, sigmoid(prediction).tolist(), strict=True))
        said = [name for name, logit in zip(self.class_names, prediction, strict=True) if logit >= 0]
        every = shares.items() if raw else ()
        return {"": said, "_probability": [shares[name] for name in said]} | {f"={name}": p for name, p in every}

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        present = value >= 0 if is_prediction else value > 0.5
        names = [name for name, here in zip(self.class_names, present, strict=True) if here]
        unknown = 0 if is_prediction else int(np.isnan(value).sum())
        if unknown == len(value):
            return "no label"
        return (", ".join(names) or "none") + (f" ({unknown} unknown)" if unknown else "")
