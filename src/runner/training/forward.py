"""One forward pass over a micro-batch: from groups to loss sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runner.tasks.base import Task
from runner.types import Batch, Prediction, Supervised


@dataclass(frozen=True)
class Forward:
    """What a forward pass needs besides the data.

    Attributes:
        model: called with a group and its tasks; may be compiled.
        autocast: makes the context of mixed precision. Losses are taken outside of it.
        per_example: losses (n,) of single examples → what is minimised in their place; None minimises them.
    """

    model: nn.Module | Callable[..., dict[str, Prediction]]
    tasks: Mapping[str, Task]
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    per_example: Callable[[Tensor], Tensor] | None = None

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        """Task → sum of its loss over the labelled elements of a micro-batch; tasks without a target are missing."""
        sums: dict[str, Tensor] = {}
        for group in batch:
            on_device = group.to(self.device, non_blocking=True)
            with self.autocast():
                predictions = self.model(on_device, list(on_device.targets))
            for name, prediction in predictions.items():
                task, target = self.tasks[name], on_device.targets[name]
                if self.per_example is not None and torch.is_grad_enabled():
                    loss = self._transformed(task, prediction, target)
                else:
                    loss = _total(task.loss_sum, prediction, target)
                sums[name] = sums[name] + loss if name in sums else loss
        return sums

    def _transformed(self, task: Task, prediction: Prediction, target: Tensor) -> Tensor:
        """The value of the plain loss sum with the gradient of the transformed one, Σ_i n_i·f(sum_i / n_i)."""
        assert self.per_example is not None
        losses_B = _total(task.example_losses, prediction, target)
        counts_B = task.example_counts(target).to(losses_B)
        labelled = counts_B > 0
        # A loss of 1 where there is no label: the transform need not be differentiable at 0.
        means_B = torch.where(labelled, losses_B / torch.where(labelled, counts_B, 1.0), 1.0)
        changed = torch.where(labelled, counts_B * self.per_example(means_B), 0.0).sum()
        return losses_B.detach().sum() + (changed - changed.detach())


def _total(loss: Callable[[Tensor, Tensor], Tensor], prediction: Prediction, target: Tensor) -> Tensor:
    """A loss (of all, or per example) with that of intermediate supervision; all have the same denominator."""
    if not isinstance(prediction, Supervised):
        return loss(prediction, target)
    total = loss(prediction.prediction, target)
    for weight, auxiliary in prediction.auxiliary:
        total = total + weight * loss(auxiliary, target)
    return total
