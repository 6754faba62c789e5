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
                loss = _loss_sum(self.tasks[name], prediction, on_device.targets[name])
                if self.per_example is not None and torch.is_grad_enabled():
                    loss = self._transformed(name, prediction, on_device.targets[name], loss)
                sums[name] = sums[name] + loss if name in sums else loss
        return sums

    def _transformed(self, name: str, prediction: Prediction, target: Tensor, loss: Tensor) -> Tensor:
        """The value of the plain loss sum with the gradient of the transformed one, Σ_i n_i·f(sum_i / n_i)."""
        assert self.per_example is not None
        task, singles = self.tasks[name], [slice(i, i + 1) for i in range(len(target))]
        counts = torch.stack([task.loss_count(target[i]) for i in singles]).to(loss)
        labelled = counts > 0
        if not labelled.any():
            return loss
        kept = [i for i, yes in zip(singles, labelled.tolist(), strict=True) if yes]
        losses = torch.stack([_loss_sum(task, _part(prediction, i), target[i]) for i in kept])
        counts = counts[labelled]
        changed = (counts * self.per_example(losses / counts)).sum()
        return loss.detach() + (changed - changed.detach())


def _loss_sum(task: Task, prediction: Prediction, target: Tensor) -> Tensor:
    """The task's loss sum, that of intermediate supervision included; all have the same denominator."""
    if not isinstance(prediction, Supervised):
        return task.loss_sum(prediction, target)
    loss = task.loss_sum(prediction.prediction, target)
    for weight, auxiliary in prediction.auxiliary:
        loss = loss + weight * task.loss_sum(auxiliary, target)
    return loss


def _part(prediction: Prediction, rows: slice) -> Prediction:
    """The prediction of some examples, with what is supervised beside it."""
    if not isinstance(prediction, Supervised):
        return prediction[rows]
    return Supervised(prediction.prediction[rows], tuple((w, tensor[rows]) for w, tensor in prediction.auxiliary))
