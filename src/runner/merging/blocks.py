"""What strategies see of the models: the same piece of each, a first look at all of them, and pieces with codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
Unit = Literal["element", "tensor", "model"]

GRAIN = 1 << 16
"""Slices start at multiples of this many elements, so that random draws do not depend on how a tensor is cut."""


@dataclass
class Block:
    """The same piece of every model, in float32.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        start: index of the first element of this piece in row-major order; 0 for a whole tensor.
        base: θ₀, flat (n,) for a slice, in its shape for a whole tensor; None without a base.
        models: θ_t likewise.
        experts: names of the experts.
        weights: the coefficient of each expert for this tensor.
        changes: what `pre` does to τ_t: functions (τ, block, index of the expert) → τ.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    base: Tensor | None
    models: Sequence[Tensor]
    experts: tuple[str, ...]
    weights: Sequence[float]
    changes: Sequence[Callable[[Tensor, Block, int], Tensor]] = ()

    def __len__(self) -> int:
        return len(self.models)

    @property
    def origin(self) -> Tensor:
        """θ₀, or zeros where there is no base."""
        return torch.zeros_like(self.models[0]) if self.base is None else self.base

    def delta(self, index: int) -> Tensor:
        """τ_t after `pre`: a new tensor, free to be written to."""
        tau = self.models[index].clone() if self.base is None else self.models[index] - self.base
        for change in self.changes:
            tau = change(tau, self, index)
        return tau

    def deltas(self) -> Tensor:
        """All task vectors (T, …); prefer `delta` one after the other where memory counts."""
        return torch.stack([self.delta(t) for t in range(len(self))])

    def model(self, index: int) -> Tensor:
        """θ_t, with `pre` applied to its task vector; not to be written to."""
        return self.models[index] if not self.changes else self.origin + self.delta(index)


class Look(Protocol):
    """What `survey` sees: all tensors that are merged, block by block.

    Attributes:
        experts: names of the experts.
        total: number of elements that are merged.
    """

    experts: tuple[str, ...]
    total: int

    def map(self, function: Callable[[Block], R], *, unit: Unit = "element", share: float = 1.0) -> list[R]:
        """`function` of every block, results in a fixed order; blocks are visited by several threads.

        Args:
            function: gives something small; what it returns is kept.
            unit: "element" for slices, "tensor" for whole tensors.
            share: look at about this part of the elements only, at fixed places spread over every tensor.
        """
        ...


@dataclass
class Split:
    """What a per-task strategy makes of a block: the shared piece, and codes that restore each expert's.

    Attributes:
        shared: the merged piece.
        parts: part (an expert's name, or one of the strategy's own) → packed codes (uint8, flat), see `pack`.
    """

    shared: Tensor
    parts: dict[str, Tensor]
