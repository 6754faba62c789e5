"""Adding up a Gram matrix from the gradients of single parameters and layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from runner.weighting.buffer import gram_part

_PIECE = 2**20
"""Floats of a linear layer's gradients that exist at the same time."""


class GramSums:
    """Adds up the Gram matrix; holds the gradients of a parameter until the last piece that has it was passed.

    Args:
        tasks: K. sizes: of each parameter. device: of the gradients.
        pieces: for each piece of the graph the parameters in it.
    """

    def __init__(self, tasks: int, sizes: Sequence[int], device: torch.device, pieces: Iterable[Sequence[int]]) -> None:
        self.tasks, self.sizes, self.device = tasks, list(sizes), device
        self.gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)
        self.left: dict[int, int] = {}
        self.held: dict[int, Tensor] = {}
        for piece in pieces:
            for i in piece:
                self.left[i] = self.left.get(i, 0) + 1
        self.total = dict(self.left)

    def only_here(self, i: int) -> bool:
        """Whether a single piece has the parameter."""
        return self.total[i] == 1

    def add(self, i: int, k: int, grad: Tensor) -> None:
        """A gradient of task k with respect to parameter i."""
        if i not in self.held:
            self.held[i] = torch.zeros(self.tasks, self.sizes[i], device=self.device)
        self.held[i][k] += grad.reshape(-1)

    def add_gram(self, tasks: Sequence[int], gram_kk: Tensor) -> None:
        """A finished part of the matrix."""
        rows = torch.tensor(tasks)
        self.gram[rows[:, None], rows] += gram_kk

    def passed(self, piece: Sequence[int]) -> None:
        """All tasks went through a piece of the graph that has these parameters."""
        for i in piece:
            self.left[i] -= 1
            if self.left[i] == 0 and i in self.held:
                self.gram += gram_part(self.held.pop(i))


def linear_gram(deltas: Sequence[Tensor], input_NI: Tensor) -> Tensor:
    """(k, k) float64: inner products of the weight gradients δ_kᵀA, formed in the cheaper of two ways.

    Args:
        deltas: k output gradients (N, O). input_NI: A.
    """
    tasks, (rows, outputs) = len(deltas), deltas[0].shape
    inputs = input_NI.shape[1]
    input_NI = input_NI.float()
    with_products = (tasks * rows) ** 2 * outputs + rows**2 * inputs
    with_gradients = tasks * outputs * inputs * (rows + tasks)
    if with_products < with_gradients and (tasks * rows) ** 2 <= 4 * _PIECE:
        flat = torch.cat(list(deltas)).float()
        products = (flat @ flat.T).view(tasks, rows, tasks, rows)
        return (products * (input_NI @ input_NI.T)[None, :, None, :]).sum((1, 3), dtype=torch.float64)
    gram = torch.zeros(tasks, tasks, dtype=torch.float64, device=input_NI.device)
    width = max(1, _PIECE // (tasks * max(inputs, rows)))
    for begin in range(0, outputs, width):
        part = torch.cat([delta_NO[:, begin : begin + width].T.float() for delta_NO in deltas])
        gram += gram_part((part @ input_NI).view(tasks, -1))
    return gram
