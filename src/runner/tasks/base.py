"""What a task is: a head's width, a loss, metrics with a direction, and a way to look at it.

Losses come as a sum and a count, because only the loop knows the count of a whole optimizer step:

    loss of a step = Σ loss_sum(prediction, target) / Σ loss_count(target)

with both sums over all micro-batches and processes. The count depends on the targets only, so the result does not
depend on how the step's examples were split. What every task keeps to:

- `loss_sum` works in float32 whatever the precision of the predictions, and is finite for any finite prediction of
  a magnitude that training can meet;
- a batch without a label gives a sum of 0 whose gradient is zero, and a count of 0;
- a prediction that is not finite, where there is a label, gives a loss that is not finite: nothing hides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.errors import RunFailed, UserError, suggest
from runner.legend import Legend
from runner.specs import TaskKind
from runner.tasks.metrics import Metrics
from runner.types import MISSING_INT

Direction = Literal["up", "down"]
"""Whether a larger value of a metric is better ("up") or worse ("down")."""


def up(*metrics: str) -> dict[str, Direction]:
    """Directions of metrics of which more is better."""
    return dict.fromkeys(metrics, "up")


def down(*metrics: str) -> dict[str, Direction]:
    """Directions of metrics of which less is better."""
    return dict.fromkeys(metrics, "down")


class Task:
    """A named objective. Subclasses name the classes they are configured with by keyword-only parameters.

    Args:
        name: the task's name in the mixture.
        out_channels: channels (or classes) the head predicts.
        directions: metric → "up" or "down", for every metric of `metrics()`. The loop adds `loss`, which goes down.
        headline: the metric that stands for the task in tables and, by default, in model selection.
        head: config of a head for this task alone; None takes the architecture's head for this kind.

    Attributes:
        kind: which head fits: "dense" (B, C, H, W), "pooled" (B, C) or "token" (B, T, C).
        loss_kind: "classification" or "regression", for weightings that treat them differently.

    Raises:
        UserError: the headline is not a metric of this task.
    """

    kind: TaskKind
    loss_kind: Literal["classification", "regression"]

    def __init__(
        self,
        name: str,
        *,
        out_channels: int,
        directions: Mapping[str, Direction],
        headline: str,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.out_channels = out_channels
        self.directions: dict[str, Direction] = dict(directions)
        if headline not in self.directions and headline != "loss":
            raise UserError(
                f"task '{name}' has no metric '{headline}' to use as headline", suggest(headline, self.directions)
            )
        self.headline = headline
        self.head = None if head is None else dict(head)

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss summed over labelled elements, a float32 scalar.

        Args:
            prediction: what the head gives, see `kind`.
            target: with `MISSING_INT` or NaN where there is no label.
        """
        raise NotImplementedError

    def loss_count(self, target: Tensor) -> Tensor:
        """The denominator that belongs to `loss_sum`, a float64 scalar."""
        raise NotImplementedError

    def example_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """`loss_sum` of every example by itself, (B,) float32. This asks for one after the other; see `Elementwise`."""
        return torch.stack([self.loss_sum(prediction[i : i + 1], target[i : i + 1]) for i in range(len(target))])

    def example_counts(self, target: Tensor) -> Tensor:
        """`loss_count` of every example by itself, (B,) float64."""
        return torch.stack([self.loss_count(target[i : i + 1]) for i in range(len(target))])

    def metrics(self) -> Metrics:
        """Fresh accumulators for one pass over a split."""
        raise NotImplementedError

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        """A picture (H, W, 3) uint8 of one example of a dense task.

        Args:
            value: a target as the mixture gives it, or a raw prediction (C, H, W).
            is_prediction: which of the two.
        """
        raise NotImplementedError(f"task '{self.name}' is not dense")

    def values(self, prediction: np.ndarray) -> np.ndarray:
        """What a raw dense prediction (C, H, W) says, in the target's own terms.

        Classes (H, W) of the smallest integers that hold them, or float32 (H, W) or (3, H, W): metres, probabilities,
        unit vectors.
        """
        raise NotImplementedError(f"task '{self.name}' is not dense")

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        """What the colours of `render` mean.

        Args:
            values: maps that the legend stands beside, as `values` gives them: classes in none of them are left out.
        """
        return Legend()

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 of how wrong a raw dense prediction is; `error_legend` explains it."""
        raise NotImplementedError(f"task '{self.name}' is not dense")

    def error_legend(self) -> Legend:
        """What the colours of `error` mean."""
        return Legend()

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        """A few words on one example of a pooled or token task; arguments as in `render`."""
        raise NotImplementedError(f"task '{self.name}' is dense: render it")

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        """What a raw prediction of one example says, for tables: the end of a column's name → its value.

        Args:
            prediction: (C,) of a pooled task, (words, C) of a token task.
            raw: with the probability of every class, as `=CLASS`.

        Returns:
            `""`: the class by name, the number, or a list of either; what else there is to say has an end of its own,
            such as `_probability`. The ends do not depend on the prediction.
        """
        return {"": self.describe(prediction, True)}


class Elementwise(Task):
    """A task whose loss is a sum over elements (pixels, tokens, entries), each of which belongs to one example."""

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Their losses (B, …), float32, 0 where there is no label."""
        raise NotImplementedError

    def element_counts(self, target: Tensor) -> Tensor:
        """What each counts in the denominator, (B, …), 0 or False where there is no label."""
        raise NotImplementedError

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.element_losses(prediction, target).sum()

    def loss_count(self, target: Tensor) -> Tensor:
        return count(self.element_counts(target))

    def example_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.element_losses(prediction, target).reshape(len(target), -1).sum(1)

    def example_counts(self, target: Tensor) -> Tensor:
        return self.element_counts(target).reshape(len(target), -1).sum(1, dtype=torch.float64)


def same_shape(task: Task, prediction: Tensor, target: Tensor) -> None:
    """Refuse to broadcast: a head and a target that do not fit give a plausible but meaningless loss.

    Raises:
        RunFailed: the shapes differ.
    """
    if prediction.shape != target.shape:
        raise RunFailed(
            f"task '{task.name}': the head predicts {tuple(prediction.shape)} and the target is {tuple(target.shape)}",
            "dense targets must have the size of the input image, and the head the task's number of channels",
        )


def check_labels(task: Task, target: Tensor, num_classes: int) -> None:
    """Refuse class labels outside 0…num_classes-1. Only on the CPU, where looking does not stall the device.

    Raises:
        RunFailed: with the offending label.
    """
    if target.is_cuda or target.numel() == 0:
        return
    wrong = (target != MISSING_INT) & ((target < 0) | (target >= num_classes))
    if wrong.any():
        label = int(target[wrong][0])
        raise RunFailed(
            f"task '{task.name}': a target has label {label}, outside 0…{num_classes - 1} (no label is {MISSING_INT})",
            f"set mixture.tasks.{task.name}.num_classes to the number of classes of the data",
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (…, C) of raw predictions, float64."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of "yes" of raw predictions, float64; as exact near 0 as a float64 can be."""
    x = logits.astype(np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def where_labelled(values: Tensor, labelled: Tensor) -> Tensor:
    """`values` where `labelled`; elsewhere 0, and no gradient."""
    return torch.where(labelled, values, 0.0)


def count(labelled: Tensor) -> Tensor:
    """Number of True, or the sum of weights, float64: exact for any number of pixels."""
    return labelled.sum(dtype=torch.float64)


def check_names(task: str, names: Sequence[str] | None, expected: int, key: str = "class_names") -> list[str]:
    """The names of classes, made up where there are none.

    Raises:
        UserError: not as many names as classes.
    """
    if names is None:
        return [str(i) for i in range(expected)]
    if len(names) != expected:
        raise UserError(
            f"task '{task}' has {expected} classes but {len(names)} '{key}'",
            f"give {expected} names, or leave '{key}' out",
        )
    return [str(name) for name in names]
