"""The tensors that travel between rooms: groups go in, features come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

MISSING_INT = -100
"""Integer targets: the value of a pixel, token or example without a label. Float targets use NaN."""


@dataclass
class Group:
    """Examples that share one forward pass of the backbone.

    Attributes:
        name: the data set they were drawn from.
        inputs: what the backbone reads, see `runner.specs.InputSpec`.
        targets: task → target. A task without any label in this group has no key; single missing labels are
            `MISSING_INT` (integer targets) or NaN (float targets).
        ids: one readable id per example, for messages.
    """

    name: str
    inputs: dict[str, Tensor]
    targets: dict[str, Tensor] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Group:
        """The same group on another device."""
        return Group(
            self.name,
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.inputs.items()},
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.targets.items()},
            self.ids,
        )

    def pin_memory(self) -> Group:
        """Called by the DataLoader where `pin_memory=True`."""
        return Group(
            self.name,
            {k: v.pin_memory() for k, v in self.inputs.items()},
            {k: v.pin_memory() for k, v in self.targets.items()},
            self.ids,
        )


Batch = list[Group]


@dataclass
class Features:
    """What a backbone makes of one group; parts a backbone does not have are None.

    Attributes:
        pyramid: [(B, C_l, H_l, W_l)], fine to coarse.
        tokens: (B, T, D) with `mask` (B, T) bool, True for real tokens.
        pooled: (B, D), one vector per example.
        size: (H, W) of the input image; dense predictions are made at this size.
    """

    pyramid: list[Tensor] | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    size: tuple[int, int] | None = None


class Supervised(NamedTuple):
    """A prediction with others of the same task that are trained beside it (deep or intermediate supervision).

    Attributes:
        prediction: what is evaluated.
        auxiliary: (weight, prediction): each adds `weight` times the task's loss of it to the task's loss.
    """

    prediction: Tensor
    auxiliary: tuple[tuple[float, Tensor], ...]


Prediction = Tensor | Supervised


def final(prediction: Prediction) -> Tensor:
    """The prediction that is evaluated."""
    return prediction.prediction if isinstance(prediction, Supervised) else prediction


def everything(prediction: Prediction) -> list[Tensor]:
    """Every tensor that the task's loss is made of."""
    if isinstance(prediction, Supervised):
        return [prediction.prediction, *(tensor for _, tensor in prediction.auxiliary)]
    return [prediction]
