"""From losses to `.grad`: exact over micro-batches, processes and mixed precision.

The loss of task k in an optimizer step is one number however the step was split:

    L_k = Σ_{ranks, micro-batches} loss_sum_k / Σ_{ranks, micro-batches} loss_count_k

Counts depend on the targets alone, so they are known (and summed over ranks) before the first forward pass; each
micro-batch then contributes a partial loss whose gradient adds up to ∇L_k. Gradients are reduced once per step, by sum.
That is why the model is not wrapped in DistributedDataParallel: per-task gradients bypass its hooks, and averaging
local means would be wrong wherever ranks hold different numbers of labelled pixels.

    engine.begin(counts)                 # (K,) labelled elements of the whole step, over all ranks
    for micro_batch: engine.backward({task: loss_sum})
    report = engine.finish()             # every parameter's .grad is ready
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from runner.weighting.base import GradientWeighting, LossWeighting, MatrixWeighting, Weighting
from runner.weighting.buffer import TaskGradients, gram_matrix
from runner.weighting.reach import Reach

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


class Engine:
    """Accumulates a step's losses, or per-task gradients, and leaves the weighted gradient in `.grad`.

    Args:
        weighting: the method.
        parameters: trainable parameters of the model in a fixed order, the same on every rank.
        reach: which of them each task's loss reaches.
        micro_batches: number of `backward` calls per step.
        reduce: sum over processes.
        device: of the model.
        loss_scale: current factor of the mixed-precision gradient scaler; gradients are left multiplied by it.
    """

    def __init__(
        self,
        weighting: Weighting,
        parameters: Sequence[nn.Parameter],
        reach: Reach,
        *,
        micro_batches: int,
        reduce: Reduce,
        device: torch.device,
        loss_scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.weighting = weighting
        self.tasks = weighting.task_names
        self.parameters = list(parameters)
        self.reach = reach
        self.micro_batches = micro_batches
        self.reduce = reduce
        self.device = device
        self.loss_scale = loss_scale
        # A weighting whose weights depend on this step's losses needs all of them before its one backward pass. With
        # several micro-batches that would mean keeping every graph: per-task gradients are exact and bounded.
        self.per_task = isinstance(weighting, GradientWeighting | MatrixWeighting) or (
            isinstance(weighting, LossWeighting) and not weighting.linear and micro_batches > 1
        )
        self.shared = [self.parameters[i] for i in reach.shared]
        if self.per_task:
            self.grads = TaskGradients(len(self.tasks), self.shared, device)
        if isinstance(weighting, MatrixWeighting):
            weighting.attach([p.shape for p in self.shared], device)

    # ---- one step -------------------------------------------------------------------------------------------------

    def begin(self, counts: Tensor, step: int = 0, steps_per_epoch: int = 1) -> None:
        """Start a step; clears `.grad`.

        Args:
            counts: (K,) labelled elements per task over the whole step.
            step: optimizer step, from 0. steps_per_epoch: for methods that think in epochs.
        """
        self.weighting.begin_step(step, steps_per_epoch)
        self.counts = counts.to(torch.float64).cpu()
        self.present = [k for k, count in enumerate(self.counts.tolist()) if count > 0]
        self.losses = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        self.scale = self.loss_scale()
        for parameter in [*self.parameters, *self.weighting.parameters()]:
            parameter.grad = None
        self.known = False
        if isinstance(self.weighting, GradientWeighting):
            known = self.weighting.known(self._present)
            if known is not None:
                self.known = True
                self.weights, self.head_weights = (values.to(self.device) for values in known)
        elif self._linear:
            self.known = True
            self.weights = self.head_weights = self._weights(torch.ones(len(self.present), device=self.device))
        if self.per_task:
            self.grads.begin()

    def backward(self, loss_sums: Mapping[str, Tensor]) -> None:
        """Add one micro-batch.

        Args:
            loss_sums: task → sum of its loss over the micro-batch's labelled elements, with its graph. Tasks without
                a label in this micro-batch may be missing.
        """
        partial = {
            k: loss_sums[self.tasks[k]].float() / self.counts[k].item()
            for k in self.present
            if self.tasks[k] in loss_sums
        }
        for k, loss in partial.items():
            self.losses[k] += loss.detach().double()
        if self.per_task and not self.known:
            self._backward_per_task(partial)
            return
        if not self.known:
            self.reduce(self.losses)
            self.weights = self.head_weights = self._weights(self.losses[self.present].float())
        partial = {k: loss for k, loss in partial.items() if loss.requires_grad}
        if not partial:
            return
        if self.head_weights is self.weights:
            self._backward_weighted(partial, self.weights)
            return
        own = [self.parameters[i] for k in partial for i in self.reach.specific[self.tasks[k]]]
        self._backward_weighted(partial, self.weights, self.shared, retain_graph=bool(own))
        if own:
            self._backward_weighted(partial, self.head_weights, own)

    def finish(self) -> StepReport:
        """Reduce over ranks, solve, and leave the gradient (times the loss scale) in `.grad`.

        Raises:
            NonFiniteLoss: before anything is solved or changed.
        """
        if self.per_task or self.known:
            self.reduce(self.losses)
        values = self.losses.tolist()
        broken = {self.tasks[k]: values[k] for k in self.present if not math.isfinite(values[k])}
        if broken:
            raise NonFiniteLoss(broken)
        losses = self.losses[self.present].float()
        looked_at = {}
        self.solver_s = 0.0
        if self.per_task and not self.known:
            looked_at = self._cosines(self._combine_per_task(losses))
        else:
            self._reduce_gradients([self.parameters[i] for i in self.reach.of(self.present)])
        self._own_gradient(losses)
        self.weighting.end_step(losses, self._present)
        return StepReport(self._spread(losses), self._spread(self.weights), solver_s=self.solver_s, **looked_at)

    # ---- loss-only ------------------------------------------------------------------------------------------------

    @property
    def _linear(self) -> bool:
        return isinstance(self.weighting, LossWeighting) and self.weighting.linear

    @property
    def _present(self) -> Tensor:
        return torch.tensor(self.present, dtype=torch.int64, device=self.device)

    def _weights(self, losses: Tensor) -> Tensor:
        """W = ∂combine/∂L at `losses`."""
        assert isinstance(self.weighting, LossWeighting)
        with torch.enable_grad():
            leaf = losses.detach().requires_grad_()
            (weights,) = torch.autograd.grad(self.weighting.combine(leaf, self._present), leaf)
        return weights

    def _own_gradient(self, losses: Tensor) -> None:
        """Gradient of the weighting's own parameters at the global losses, identical on every rank."""
        own = [p for p in self.weighting.parameters() if p.requires_grad]
        if not own:
            return
        if not isinstance(self.weighting, LossWeighting):  # left there by the solve
            for parameter in own:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.scale)
            return
        with torch.enable_grad():
            total = self.weighting.combine(losses.detach(), self._present) * self.scale
            for parameter, grad in zip(own, torch.autograd.grad(total, own, allow_unused=True), strict=True):
                parameter.grad = grad

    def _backward_weighted(
        self,
        partial: Mapping[int, Tensor],
        weights: Tensor,
        inputs: Sequence[nn.Parameter] | None = None,
        retain_graph: bool = False,
    ) -> None:
        # Not Σ w·L over all tasks in one tensor: a missing task must not enter the graph with a zero.
        terms = [weights[self.present.index(k)].detach() * loss for k, loss in partial.items()]
        torch.autograd.backward(torch.stack(terms).sum() * self.scale, inputs=inputs, retain_graph=retain_graph)

    # ---- per-task gradients ---------------------------------------------------------------------------------------

    def _backward_per_task(self, partial: Mapping[int, Tensor]) -> None:
        """K backward passes into the flat K×P buffer; parameters of one task accumulate in `.grad` as usual."""
        with_graph = [(k, loss) for k, loss in partial.items() if loss.requires_grad]
        for n, (k, loss) in enumerate(with_graph):
            own = [self.parameters[i] for i in self.reach.specific[self.tasks[k]]]
            grads = torch.autograd.grad(
                loss * self.scale, self.shared + own, retain_graph=n + 1 < len(with_graph), allow_unused=True
            )
            self.grads.add(k, grads[: len(self.shared)])
            for parameter, grad in zip(own, grads[len(self.shared) :], strict=True):
                if grad is not None:
                    set_grad(parameter, grad if parameter.grad is None else parameter.grad + grad)
            del grads  # or two tasks' gradients live at once beside the buffer

    def _combine_per_task(self, losses: Tensor) -> Tensor:
        grads_KP = self.grads.finish()
        self.reduce(grads_KP)
        self._reduce_gradients([self.parameters[i] for k in self.present for i in self.reach.specific[self.tasks[k]]])
        rows = torch.tensor(self.present)
        gram = gram_matrix(grads_KP)[rows[:, None], rows] / self.scale**2
        began = time.perf_counter()
        shared = self._solve(gram, losses)
        self.solver_s = time.perf_counter() - began
        if shared is None:
            weights_K = torch.zeros(len(self.tasks), device=self.device)
            weights_K[self.present] = self.weights
            shared = weights_K @ grads_KP
        reached = set(self.reach.of(self.present))
        for index, parameter, grad in zip(self.reach.shared, self.shared, self.grads.split(shared), strict=True):
            if index in reached:
                set_grad(parameter, grad)
        for weight, k in zip(self.head_weights, self.present, strict=True):
            for i in self.reach.specific[self.tasks[k]]:
                self.parameters[i].grad.mul_(weight)  # type: ignore[union-attr]
        return gram

    def _cosines(self, gram: Tensor) -> dict[str, Tensor]:
        """Of the Gram matrix (k, k) of the present tasks: what the report says of their gradients."""
        rows = torch.tensor(self.present)
        norms = gram.diagonal().clamp_min(0).sqrt()
        cosines = torch.full((len(self.tasks), len(self.tasks)), float("nan"))
        cosines[rows[:, None], rows] = (gram / (norms[:, None] * norms).clamp_min(1e-30)).float()
        return {"grad_norms": self._spread(norms), "cosines": cosines}

    def _solve(self, gram: Tensor, losses: Tensor) -> Tensor | None:
        """Sets the coefficients; returns the shared gradient (P,) where it is not simply their combination."""
        weighting = self.weighting
        if isinstance(weighting, LossWeighting):
            self.weights = self.head_weights = self._weights(losses)
            return None
        if not gram.isfinite().all():
            # An overflow of the loss scale: nothing is solved and no state changes; the scaler will find the
            # infinities in the plain sum and skip the step.
            self.weights = self.head_weights = torch.ones(len(self.present), device=self.device)
            return None
        if isinstance(weighting, GradientWeighting):
            solution = weighting.coefficients(gram, losses.cpu(), self._present.cpu())
            self.weights, self.head_weights = (values.to(self.device) for values in solution)
            return None
        assert isinstance(weighting, MatrixWeighting)
        matrix = self.grads.matrix_KP
        grads_kP = matrix if len(self.present) == len(self.tasks) else matrix[self.present]
        shared, self.weights, self.head_weights = weighting.combine(
            grads_kP.div_(self.scale) if self.scale != 1 else grads_kP, losses, self._present
        )
        return shared * self.scale if self.scale != 1 else shared

    # ---- over processes -------------------------------------------------------------------------------------------

    def _reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum `.grad` over ranks in one flat message; a rank without a graph for a present task adds zeros."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.reduce is identity or not parameters:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])  # type: ignore[union-attr]
        self.reduce(flat)
        offset = 0
        for parameter in parameters:
            set_grad(parameter, flat[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()

    def _spread(self, values: Tensor) -> Tensor:
        full = torch.full((len(self.tasks),), float("nan"))
        full[self.present] = values.detach().float().cpu()
        return full


def set_grad(parameter: nn.Parameter, grad: Tensor) -> None:
    """Set `.grad` with the parameter's own dtype and strides.

    `backward` sees to the strides, `autograd.grad` does not (a convolution may answer in channels-last), and the fused
    optimizers read memory in order whatever the strides say: the wrong weights would be updated, silently.
    """
    if grad.dtype != parameter.dtype or grad.stride() != parameter.stride():
        grad = torch.empty_like(parameter).copy_(grad)
    parameter.grad = grad


def identity(tensor: Tensor) -> Tensor:
    """The reduction of a single process."""
    return tensor
