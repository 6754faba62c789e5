"""Cutting the autograd graph at a tensor: backward passes that stop there, and go on from there later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class _Entry(torch.autograd.Function):
    """A tensor of the same memory whose graph begins here.

    Not a detached leaf: activations that work in place, which often follow, would be refused on a leaf.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, box: list[Tensor]) -> Tensor:
        return box[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:  # type: ignore[override]
        return None, None


@dataclasses.dataclass
class Cut:
    """One cut.

    Attributes:
        outer: where the graph before it ends: gradients go in here.
        entry: where the graph after it begins: gradients come out here.
        shape, dtype: of the tensor.
    """

    outer: GradientEdge
    entry: GradientEdge
    shape: torch.Size
    dtype: torch.dtype


def cut(tensor: Tensor) -> tuple[Tensor, Cut]:
    """The same values with a graph of their own, and the cut between the two graphs."""
    anchor = torch.zeros((), device=tensor.device, requires_grad=True)
    entry = _Entry.apply(anchor, [tensor])
    return entry, Cut(get_gradient_edge(tensor), get_gradient_edge(entry), tensor.shape, tensor.dtype)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed: in lists, tuples, dicts and dataclasses; a tensor met twice, once."""
    return _mapped(value, change, {})


def _mapped(item: Any, change: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> Any:
    # Not a function inside the other: one that calls itself is a cycle, and would keep the tensors until a collection.
    if isinstance(item, Tensor):
        if id(item) not in done:
            done[id(item)] = change(item)
        return done[id(item)]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {f.name: _mapped(getattr(item, f.name), change, done) for f in dataclasses.fields(item)}
        return dataclasses.replace(item, **fields)
    if isinstance(item, dict):
        return type(item)((key, _mapped(inner, change, done)) for key, inner in item.items())
    if isinstance(item, list | tuple):
        inner = [_mapped(part, change, done) for part in item]
        return type(item)(*inner) if hasattr(item, "_fields") else type(item)(inner)
    return item
