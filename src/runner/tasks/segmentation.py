"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import RunFailed, UserError
from runner.legend import Legend
from runner.tasks.base import Elementwise, Task, check_labels, check_names, up
from runner.tasks.colours import RIGHT_OR_WRONG, classes_to_rgb, right_or_wrong
from runner.tasks.metrics import Metrics, accuracy, class_counts, mean_iou, mean_recall
from runner.tasks.variants import metrics_with_variants, with_variants
from runner.types import MISSING_INT


class Segmentation(Elementwise):
    """Cross-entropy over labelled pixels; mean IoU over one global count of pixels.

    loss_sum = Σ_i w[y_i]·CE_i, loss_count = Σ_i w[y_i] over labelled pixels i, with w the class weights or 1: the
    quotient is `torch.nn.CrossEntropyLoss`. Metrics: `miou` (classes that occur neither in predictions nor in
    targets are left out of the mean), `pixel_acc`, `mean_acc` (recall averaged over the classes in the targets).

    Args:
        num_classes: classes, with the background where it counts as one.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: one weight per class. class_names: for legends.
        headline, head: see `Task`.
        variants: see `runner.tasks.variants`; and `miou_all`: classes that occur nowhere count as 0, as in the released
            code of ASTMT and InvPT; the same on any split in which every class occurs.
    """

    kind = "dense"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        num_classes: PositiveInt,
        label_smoothing: Fraction = 0.0,
        class_weights: list[float] | None = None,
        class_names: list[str] | None = None,
        headline: Literal["miou", "pixel_acc", "mean_acc", "loss"] = "miou",
        variants: Sequence[str] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        whole = [variant for variant in variants if variant == "miou_all"]
        parts = [variant for variant in variants if variant != "miou_all"]
        directions = with_variants(name, up("miou", "pixel_acc", "mean_acc", *whole), parts)
        super().__init__(name, out_channels=num_classes, directions=directions, headline=headline, head=head)
        self.num_classes = num_classes
        self.class_names = check_names(name, class_names, num_classes)
        self.variants = tuple(parts)
        self.whole = tuple(whole)
        self.label_smoothing = label_smoothing
        self.class_weights = weight_per_class(name, class_weights, num_classes)

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction, target, self.class_weights, self.label_smoothing, "sum")

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction, target, self.class_weights, self.label_smoothing, "none")

    def element_counts(self, target: Tensor) -> Tensor:
        return cross_entropy_counts(self, target, self.class_weights)

    def metrics(self) -> Metrics:
        sums = {"classes": (3, self.num_classes)}
        return metrics_with_variants(sums, self._observe, self._summarise, self.variants)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        check_labels(self, target, self.num_classes)
        said = prediction.max(1).indices  # on a CPU a third of the time of argmax
        return {"classes": class_counts(said, target, self.num_classes, MISSING_INT)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counts = state["classes"]
        values = {"miou": mean_iou(counts), "pixel_acc": accuracy(counts), "mean_acc": mean_recall(counts)}
        return values | {name: mean_iou(counts, absent=0.0) for name in self.whole}

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        return classes_to_rgb(value.argmax(0) if is_prediction else value)

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return prediction.argmax(0).astype(np.uint8 if self.num_classes <= 256 else np.uint16)

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        pixels = np.zeros(self.num_classes, np.int64)
        for value in values:
            known = value[value >= 0]
            pixels += np.bincount(known.ravel().astype(np.int64), minlength=self.num_classes)[: self.num_classes]
        shown = sorted(np.flatnonzero(pixels), key=lambda c: -pixels[c]) if values else range(self.num_classes)
        rgb = classes_to_rgb(np.arange(self.num_classes))
        return Legend(tuple((self.class_names[c], tuple(rgb[c].tolist())) for c in shown))

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return right_or_wrong(prediction.argmax(0) != target, target >= 0)

    def error_legend(self) -> Legend:
        return RIGHT_OR_WRONG


HUMAN_PARTS = ["background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg"]


class HumanParts(Segmentation):
    """Segmentation of a person into parts, as on PASCAL-Context: background and six parts, mIoU over all seven.

    Loss and metrics are those of `Segmentation`. Images without a person carry no label.

    Args:
        num_classes: 7 = background, head, torso, upper arm, lower arm, upper leg, lower leg.
        label_smoothing, class_weights, class_names, headline, variants, head: see `Segmentation`.
    """

    kind = "dense"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        num_classes: PositiveInt = 7,
        label_smoothing: Fraction = 0.0,
        class_weights: list[float] | None = None,
        class_names: list[str] | None = None,
        headline: Literal["miou", "pixel_acc", "mean_acc", "loss"] = "miou",
        variants: Sequence[str] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name,
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            class_names=class_names or (HUMAN_PARTS if num_classes == len(HUMAN_PARTS) else None),
            headline=headline,
            variants=variants,
            head=head,
        )


def weight_per_class(task: str, weights: list[float] | None, num_classes: int) -> Tensor | None:
    """Class weights as a float32 tensor, None for none.

    Raises:
        UserError: the wrong number of weights, or a negative one.
    """
    if weights is None:
        return None
    if len(weights) != num_classes or not all(w >= 0 for w in weights):
        raise UserError(
            f"task '{task}': class_weights must be {num_classes} numbers of 0 or more, not {len(weights)}: {weights}"
        )
    return torch.tensor(weights, dtype=torch.float32)


def cross_entropy(
    task: Task,
    prediction: Tensor,
    target: Tensor,
    weights: Tensor | None,
    label_smoothing: float,
    reduction: Literal["sum", "none"],
) -> Tensor:
    """Cross-entropy of (B, C, …) logits and (B, …) class numbers, in float32: its sum, or in the target's shape."""
    if prediction.shape[:1] + prediction.shape[2:] != target.shape or prediction.shape[1] != task.out_channels:
        raise RunFailed(
            f"task '{task.name}': the head predicts {tuple(prediction.shape)} (classes second) and the target is"
            f" {tuple(target.shape)} with {task.out_channels} classes",
            "dense targets must have the size of the input image, and the head the task's number of channels",
        )
    shape = target.shape
    if prediction.is_cuda and torch.are_deterministic_algorithms_enabled():
        # torch has a deterministic kernel for (N, C) only; elsewhere this would cost a copy for nothing
        prediction, target = prediction.movedim(1, -1).flatten(0, -2), target.flatten()
    losses = F.cross_entropy(
        prediction.float(),
        target,
        weight=None if weights is None else weights.to(prediction.device),
        ignore_index=MISSING_INT,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return losses if reduction == "sum" else losses.view(shape)


def cross_entropy_counts(task: Task, target: Tensor, weights: Tensor | None) -> Tensor:
    """What each element counts in the denominator: its class's weight, or True where it has a label."""
    check_labels(task, target, task.out_channels)
    labelled = target != MISSING_INT
    if weights is None:
        return labelled
    per_element = weights.to(target.device, torch.float64)[torch.where(labelled, target, 0)]
    return torch.where(labelled, per_element, 0.0)
