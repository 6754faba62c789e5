"""What a step is made of besides its passes: the sum over processes, its report, the error, setting `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all processes, in place; the identity in a single process."""


class NonFiniteLoss(ArithmeticError):
    """Losses of a step are NaN or infinite, after the sum over ranks: every rank raises the same.

    Attributes:
        losses: task → loss, of the tasks concerned.
    """

    def __init__(self, losses: Mapping[str, float]) -> None:
        self.losses = dict(losses)
        self.tasks = list(self.losses)
        super().__init__(f"not finite: {self.losses}")


@dataclass
class StepReport:
    """What one optimizer step did.

    Attributes:
        losses: (K,) float32 on the CPU, NaN where the task had no label in this step.
        weights: (K,) the coefficient of each ∇L_k in the applied gradient, NaN likewise.
        grad_norms: (K,) lengths of the per-task gradients that the method looked at (of the shared parameters, or of
            the shared representation), without loss scale; NaN where the step did not need them.
        cosines: (K, K) cosines between those gradients, NaN likewise.
        solver_s: seconds that the method itself took on the host: the aggregation, without forward and backward passes.

    The last three are on the CPU and cost no synchronisation with a GPU beyond that of the solve.
    """

    losses: Tensor
    weights: Tensor
    grad_norms: Tensor = field(default_factory=lambda: torch.empty(0))
    cosines: Tensor = field(default_factory=lambda: torch.empty(0))
    solver_s: float = 0.0

    def __post_init__(self) -> None:
        tasks, nan = len(self.losses), float("nan")
        if not self.grad_norms.numel():
            self.grad_norms = torch.full((tasks,), nan)
        if not self.cosines.numel():
            self.cosines = torch.full((tasks, tasks), nan)


def set_grad(parameter: nn.Parameter, grad: Tensor) -> None:
    """Set `.grad` with the parameter's own dtype and strides.

    `backward` sees to the strides, `autograd.grad` does not (a convolution may answer in channels-last), and the fused
    optimizers read memory in order whatever the strides say: the wrong weights would be updated, silently.
    """
    if grad.dtype != parameter.dtype or grad.stride() != parameter.stride():
        grad = torch.empty_like(parameter).copy_(grad)
    parameter.grad = grad


def add_grad(parameter: nn.Parameter, grad: Tensor | None) -> None:
    """Add to `.grad`, as `set_grad`."""
    if grad is not None:
        set_grad(parameter, grad if parameter.grad is None else parameter.grad + grad)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU. On a GPU the host waits here until all that it asked for before is computed.

    Nothing else in a step of a gradient method waits: no tensor of a device is looked at, branched on or copied but
    through this, once each for the labels, the losses, the matrix of inner products, the coefficients for the log, and
    what a method keeps there.
    """
    return tensor.cpu()


def identity(tensor: Tensor) -> Tensor:
    """The reduction of a single process."""
    return tensor
