"""Classification of whole examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import Fraction, PositiveInt
from runner.tasks.base import Elementwise, check_labels, check_names, count, softmax, up
from runner.tasks.metrics import Metrics, accuracy, class_counts, matthews, mean_f1, mean_recall
from runner.tasks.segmentation import cross_entropy, cross_entropy_counts, weight_per_class
from runner.types import MISSING_INT


class Classification(Elementwise):
    """One class per example, cross-entropy.

    loss_sum = Σ w[y]·CE, loss_count = Σ w[y] over labelled examples, with w the class weights or 1. Metrics:
    `accuracy`, `balanced_accuracy` (recall averaged over the classes in the targets), `f1` (averaged over the classes
    that occur), `mcc` (Matthews), and `top5_accuracy` where there are more than five classes.

    Args:
        num_classes: classes.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        class_weights: one weight per class.
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
        label_smoothing: Fraction = 0.0,
        class_weights: list[float] | None = None,
        class_names: list[str] | None = None,
        headline: Literal["accuracy", "balanced_accuracy", "f1", "mcc", "top5_accuracy", "loss"] = "accuracy",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        self.top5 = num_classes > 5
        directions = up("accuracy", "balanced_accuracy", "f1", "mcc", *["top5_accuracy"] * self.top5)
        super().__init__(name, out_channels=num_classes, directions=directions, headline=headline, head=head)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.class_weights = weight_per_class(name, class_weights, num_classes)
        self.class_names = check_names(name, class_names, num_classes)

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction, target, self.class_weights, self.label_smoothing, "sum")

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction, target, self.class_weights, self.label_smoothing, "none")

    def element_counts(self, target: Tensor) -> Tensor:
        return cross_entropy_counts(self, target, self.class_weights)

    def metrics(self) -> Metrics:
        return Metrics({"classes": (3, self.num_classes), "top5": ()}, self._observe, self._summarise)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        check_labels(self, target, self.num_classes)
        seen = {"classes": class_counts(prediction.max(1).indices, target, self.num_classes, MISSING_INT)}
        if self.top5:
            hits = (prediction.topk(5, dim=1).indices == target[:, None]).any(1)
            seen["top5"] = count(hits & (target != MISSING_INT))
        return seen

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counts = state["classes"]
        values = {
            "accuracy": accuracy(counts),
            "balanced_accuracy": mean_recall(counts),
            "f1": mean_f1(counts),
            "mcc": matthews(counts),
        }
        return values | ({"top5_accuracy": state["top5"] / counts[2].sum()} if self.top5 else {})

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        share_C = softmax(prediction)
        best = int(prediction.argmax())
        every = zip(self.class_names, share_C.tolist(), strict=True) if raw else ()
        return {"": self.class_names[best], "_probability": float(share_C[best])} | {f"={name}": p for name, p in every}

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        if not is_prediction:
            return self.class_names[int(value)] if int(value) != MISSING_INT else "no label"
        best = int(value.argmax())
        share = 1.0 / np.exp(value.astype(np.float64) - value[best]).sum()
        return f"{self.class_names[best]} ({share:.2f})"
