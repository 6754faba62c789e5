"""Examples of a dense data set, each made where it lies in its batch: nothing is stacked afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runner.mixtures.dense import DenseDataset
from runner.mixtures.lending import empty
from runner.mixtures.views import new_target, view_image
from runner.types import MISSING_INT, Group


class DenseBatch:
    """A group in the making: the same as `collate` of `DenseDataset.example`, without copies.

    Args:
        dataset: of the examples. count: how many there will be.
    """

    def __init__(self, dataset: DenseDataset, count: int) -> None:
        self._dataset, self._count = dataset, count
        self._ids: list[str] = []
        self._pixels = torch.empty(0)
        self._targets: dict[str, Tensor] = {}

    def add(self, index: int, rng: np.random.Generator | None) -> None:
        """Make the next example; arguments as those of `DenseDataset.example`."""
        dataset, row = self._dataset, len(self._ids)
        record, view, colours = dataset.look(index, rng)
        if row == 0:
            self._pixels = empty(self._count, 3, *view.size)
        view_image(record.image, view, colours, self._pixels[row].numpy())
        for task in dataset.tasks:
            if task in record.maps:
                if task not in self._targets:
                    self._targets[task] = self._unlabelled(new_target(dataset.source.layers[task], view.size), row)
                dataset.target(record, task, view, self._targets[task][row].numpy())
            elif task in self._targets:
                self._targets[task][row] = _missing(self._targets[task])
        self._ids.append(record.id)

    def group(self) -> Group:
        """The group, once every example is made."""
        return Group(self._dataset.name, {"pixels": self._pixels}, self._targets, self._ids)

    def _unlabelled(self, target: np.ndarray, rows: int) -> Tensor:
        """Room for the targets of a task, of which the first rows have none."""
        found = empty(self._count, *target.shape, dtype=torch.from_numpy(target).dtype)
        found[:rows] = _missing(found)
        return found


def _missing(targets: Tensor) -> float:
    return torch.nan if targets.is_floating_point() else MISSING_INT
