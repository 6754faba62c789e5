"""The K×P matrix of per-task gradients in one preallocated buffer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from runner.weighting.step import to_host

_PIECE = 16384
"""Columns of one step of the Gram matrix on the CPU."""
_COLUMNS = {"cpu": 2**16}
"""Columns of one step of a combination: few enough to stay in a processor's cache, many enough to keep a GPU busy."""
_LARGE = 2**16
"""Elements from which a gradient is worth a call of its own."""


class TaskGradients:
    """Row k holds the gradient of task k with respect to the shared parameters, flattened in their order.

    A row is written by its first gradient of a step and added to by the later ones, so that nothing is cleared that is
    overwritten anyway. Rows of tasks without a gradient in this step are zero once `finish` has run.

    Nothing of size P is made beside the matrix: large gradients go into their row one by one, as the backward pass
    comes to them, and the first row makes room for the combination of all.

    Args:
        tasks: number of tasks K.
        parameters: the shared parameters; P is their size.
        device: where the float32 buffer lies.
        matrix_KP: the buffer, if there is one already.
    """

    def __init__(
        self,
        tasks: int,
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        matrix_KP: Tensor | None = None,
    ) -> None:
        sizes = [p.numel() for p in parameters]
        self.matrix_KP = torch.zeros(tasks, sum(sizes), device=device) if matrix_KP is None else matrix_KP
        self.parameters = list(parameters)
        self.large = [i for i, size in enumerate(sizes) if size >= _LARGE]
        self.views = [
            [part.view(p.shape) for part, p in zip(row.split(sizes), parameters, strict=True)] for row in self.matrix_KP
        ]
        self.written = [False] * tasks

    def begin(self) -> None:
        """Start a step."""
        self.written = [False] * len(self.written)

    def backward(
        self, task: int, loss: Tensor, others: Sequence[Tensor], retain_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """One backward pass: adds the gradient of a task's loss to its row; returns those of `others`."""
        copied: set[int] = set()
        with self._copying(task, copied):
            found = torch.autograd.grad(loss, [*self.parameters, *others], retain_graph=retain_graph, allow_unused=True)
        count = len(self.parameters)
        self.add(task, found[:count], copied)
        return found[count:]

    @contextmanager
    def _copying(self, task: int, copied: set[int]) -> Iterator[None]:
        """Gradients of large parameters are copied while they are in the cache, and let go before the next is made."""

        def receiver(i: int) -> Callable[[Tensor], Tensor]:
            view = self.views[task][i]
            nothing = torch.zeros((), dtype=self.parameters[i].dtype, device=view.device).expand(view.shape)

            def receive(grad: Tensor) -> Tensor:
                self._put(task, [view], [grad])
                copied.add(i)
                return nothing  # in the place of the gradient, which nobody holds any more

            return receive

        handles = [self.parameters[i].register_hook(receiver(i)) for i in self.large]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, task: int, grads: Sequence[Tensor | None], copied: Container[int] = ()) -> None:
        """Add one gradient of a task; None where it does not reach a parameter; `copied` are in their row already."""
        rows = self.views[task]
        there = [(rows[i], grad) for i, grad in enumerate(grads) if grad is not None and i not in copied]
        if there:
            self._put(task, [view for view, _ in there], [grad for _, grad in there])
        missing = [rows[i] for i, grad in enumerate(grads) if grad is None]
        if missing:
            self._put_nothing(task, missing)
        self.written[task] = True

    def _put(self, task: int, views: list[Tensor], grads: list[Tensor]) -> None:
        """Gradients of a task into parts of its row."""
        (torch._foreach_add_ if self.written[task] else torch._foreach_copy_)(views, grads)

    def _put_nothing(self, task: int, views: list[Tensor]) -> None:
        """The same for parts that the task's loss does not reach."""
        if not self.written[task]:
            torch._foreach_zero_(views)

    def finish(self) -> Tensor:
        """The matrix of this step.

        A row that this process has not written may hold what the sum over processes left there in the step before.
        """
        for task, written in enumerate(self.written):
            if not written:
                self.matrix_KP[task].zero_()
        return self.matrix_KP

    def combine(self, weights_K: Tensor) -> list[Tensor]:
        """Σ_k w_k g_k, in the parameters' shapes; takes the place of the first row."""
        combine_rows(weights_K, self.matrix_KP)
        return self.views[0]

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """A vector over the shared parameters as views of their shapes."""
        parts = vector_P.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]


def in_columns(grads_kP: Tensor) -> Sequence[Tensor]:
    """The matrix in groups of columns that fit a processor's cache."""
    return grads_kP.split(_COLUMNS.get(grads_kP.device.type, 2**24), dim=-1)


def combine_rows(weights_k: Tensor, grads_kP: Tensor) -> Tensor:
    """Σ_k w_k g_k (P,) in the place of the first row."""
    for piece in in_columns(grads_kP):
        piece[0] = combination(weights_k, piece)
    return grads_kP[0]


def combination(weights_k: Tensor, grads_kP: Tensor) -> Tensor:
    """Σ_k w_k g_k (P,); `weights_k @ grads_kP` goes through a routine for matrices, which takes three times as long."""
    return torch.mv(grads_kP.T, weights_k)


def gram_matrix(grads_KP: Tensor) -> Tensor:
    """(K, K) float64 on the CPU; not finite exactly where the gradients are not."""
    gram = _gram(grads_KP)
    if not gram.isfinite().all():
        largest = grads_KP.abs().amax()
        if largest.isfinite():  # squares beyond float32, of gradients within it
            gram = _gram(grads_KP / largest) * largest.item() ** 2
    return gram


def gram_part(grads_KP: Tensor) -> Tensor:
    """The same of a few columns, on their device, without waiting for it; not finite where the gradients are not."""
    if grads_KP.device.type == "cpu":
        return gram_matrix(grads_KP)
    if not grads_KP.numel():
        return grads_KP.new_zeros(len(grads_KP), len(grads_KP), dtype=torch.float64)
    largest = grads_KP.abs().amax().clamp_min(torch.finfo(grads_KP.dtype).tiny)
    unit_KP = grads_KP / largest  # squares may leave float32 where gradients do not
    return (unit_KP @ unit_KP.T).double() * largest.double() ** 2


def _gram(grads_KP: Tensor) -> Tensor:
    if grads_KP.device.type != "cpu":
        return to_host((grads_KP @ grads_KP.T).double())
    # A few very long rows are the worst case of a matrix product on a CPU: in pieces that stay in the cache it takes a
    # third of the time, and summed in float64 it is the more exact.
    gram = torch.zeros(len(grads_KP), len(grads_KP), dtype=torch.float64)
    for piece in grads_KP.split(_PIECE, dim=1):
        gram += piece @ piece.T
    return gram
