"""The K×P matrix of per-task gradients in one preallocated buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_PIECE = 16384
"""Columns of one step of the Gram matrix on the CPU."""


class TaskGradients:
    """Row k holds the gradient of task k with respect to the shared parameters, flattened in their order.

    A row is written by its first gradient of a step and added to by the later ones, so that nothing is cleared that is
    overwritten anyway. Rows of tasks without a gradient in this step are zero once `finish` has run.

    Args:
        tasks: number of tasks K.
        parameters: the shared parameters; P is their size.
        device: where the float32 buffer lies.
    """

    def __init__(self, tasks: int, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        sizes = [p.numel() for p in parameters]
        self.matrix_KP = torch.zeros(tasks, sum(sizes), device=device)
        self.shapes = [p.shape for p in parameters]
        self.views = [
            [part.view(p.shape) for part, p in zip(row.split(sizes), parameters, strict=True)] for row in self.matrix_KP
        ]
        self.written = [False] * tasks

    def begin(self) -> None:
        """Start a step."""
        self.written = [False] * len(self.written)

    def add(self, task: int, grads: Sequence[Tensor | None]) -> None:
        """Add one gradient of a task; None where it does not reach a parameter."""
        reached = [(view, grad) for view, grad in zip(self.views[task], grads, strict=True) if grad is not None]
        if reached:
            views, values = (list(side) for side in zip(*reached, strict=True))
            (torch._foreach_add_ if self.written[task] else torch._foreach_copy_)(views, values)
        if not self.written[task] and len(reached) < len(self.views[task]):
            torch._foreach_zero_([v for v, g in zip(self.views[task], grads, strict=True) if g is None])
        self.written[task] = True

    def finish(self) -> Tensor:
        """The matrix of this step.

        A row that this process has not written may hold what the sum over processes left there in the step before.
        """
        for task, written in enumerate(self.written):
            if not written:
                self.matrix_KP[task].zero_()
        return self.matrix_KP

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """A vector over the shared parameters as views of their shapes."""
        parts = vector_P.split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def gram_matrix(grads_KP: Tensor) -> Tensor:
    """(K, K) float64 on the CPU; not finite exactly where the gradients are not."""
    gram = _gram(grads_KP)
    if not gram.isfinite().all():
        largest = grads_KP.abs().amax()
        if largest.isfinite():  # squares beyond float32, of gradients within it
            gram = _gram(grads_KP / largest) * largest.item() ** 2
    return gram


def _gram(grads_KP: Tensor) -> Tensor:
    if grads_KP.device.type != "cpu":
        return (grads_KP @ grads_KP.T).double().cpu()
    # A few very long rows are the worst case of a matrix product on a CPU: in pieces that stay in the cache it takes a
    # third of the time, and summed in float64 it is the more exact.
    gram = torch.zeros(len(grads_KP), len(grads_KP), dtype=torch.float64)
    for piece in grads_KP.split(_PIECE, dim=1):
        gram += piece @ piece.T
    return gram
