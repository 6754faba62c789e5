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

How the backward passes are made is the business of a `Pass`, chosen by what the weighting needs and by its `mode`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.weighting.base import GradientWeighting, LossWeighting, MatrixWeighting, Weighting
from runner.weighting.checks import require_positive
from runner.weighting.reach import Reach
from runner.weighting.step import NonFiniteLoss, Reduce, StepReport, identity, set_grad, to_host

LOG_FLOOR = 1e-8
"""Added to a loss before its logarithm, as the methods that take logarithms themselves do."""


class Pass:
    """How a step's backward passes are made; one object lives as long as its engine, whose state it reads and sets."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def begin(self) -> None:
        """Before the first forward pass of a step."""

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        """One micro-batch: position of a task → its part of L_k, with its graph."""
        raise NotImplementedError

    def finish(self, losses: Tensor) -> Tensor | None:
        """Leave every gradient, summed over ranks and times the loss scale, in `.grad`; set the engine's weights.

        Args:
            losses: (k,) of the present tasks, as the weighting sees them.

        Returns:
            The Gram matrix (k, k) of the gradients that the method looked at, without loss scale, on the CPU.
        """
        raise NotImplementedError

    def leave(self) -> None:
        """End a step without a label, of which `backward` has seen nothing."""


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
        model: whose `parameters` they are; the modes `gram` and `representation` hook its modules.
        skippable: whether a step whose loss or gradient is not finite may be skipped, and the run go on; the state of
            the weighting must be what it was then, even where that takes memory.
        log: the weighting gets the logarithms of the losses, and their gradients ∇L_k/L_k (`trainer.log_losses`).

    Attributes:
        present: positions of the tasks that have a label in this step.
        weights, head_weights: (k,) of the present tasks, once they are known.
    """

    weights: Tensor
    head_weights: Tensor

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
        model: nn.Module | None = None,
        log: bool = False,
        skippable: bool = True,
    ) -> None:
        from runner.weighting import passes  # which builds on this module

        self.weighting = weighting
        self.tasks = weighting.task_names
        self.parameters = list(parameters)
        self.reach = reach
        self.micro_batches = micro_batches
        self.reduce = reduce
        self.device = device
        self.loss_scale = loss_scale
        self.model = model
        self.log = log
        self.skippable = skippable
        self.shared = [self.parameters[i] for i in reach.shared]
        self.rest = [self.parameters[i] for i in reach.rest]
        self.solver_s = 0.0
        if isinstance(weighting, MatrixWeighting):
            weighting.attach([p.shape for p in self.shared], device)
        self.weighted = passes.WeightedPass(self)
        self.main = self.current = passes.choose(self)

    # ---- one step -------------------------------------------------------------------------------------------------

    def begin(self, counts: Tensor, step: int = 0, steps_per_epoch: int = 1) -> None:
        """Start a step; clears `.grad`.

        Args:
            counts: (K,) labelled elements per task over the whole step, or (M, K) of each of its micro-batches, which
                methods that compare sub-batches need.
            step: optimizer step, from 0. steps_per_epoch: for methods that think in epochs.
        """
        self.weighting.begin_step(step, steps_per_epoch)
        self.micro_counts = to_host(counts.to(torch.float64)).reshape(-1, len(self.tasks))
        self.counts = self.micro_counts.sum(0)
        self.present = [k for k, count in enumerate(self.counts.tolist()) if count > 0]
        self.losses = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        self.losses_reduced = False
        self.scale = self.loss_scale()
        self.solver_s = 0.0
        for parameter in [*self.parameters, *self.weighting.parameters()]:
            parameter.grad = None
        self.current = self.main
        if isinstance(self.weighting, GradientWeighting):
            known = self.weighting.known(torch.tensor(self.present))
            if known is not None:
                self.current = self.weighted
                self.weights, self.head_weights = (values.to(self.device) for values in known)
        self.current.begin()

    def backward(self, loss_sums: Mapping[str, Tensor]) -> None:
        """Add one micro-batch.

        Args:
            loss_sums: task → sum of its loss over the micro-batch's labelled elements, with its graph. Tasks without
                a label in this micro-batch may be missing.
        """
        if not self.present:
            return
        partial = {
            k: loss_sums[self.tasks[k]].float() / self.counts[k].item()
            for k in self.present
            if self.tasks[k] in loss_sums
        }
        for k, loss in partial.items():
            self.losses[k] += loss.detach().double()
        self.current.backward(partial)

    def finish(self) -> StepReport:
        """Reduce over ranks, solve, and leave the gradient (times the loss scale) in `.grad`.

        Without a label in the whole step no parameter gets one.

        Raises:
            NonFiniteLoss: before anything is solved or changed.
            RunFailed: a loss has no logarithm and `log` asks for it.
        """
        self.reduce_losses()
        self.host_losses = to_host(self.losses)
        values = self.host_losses.tolist()
        broken = {self.tasks[k]: values[k] for k in self.present if not math.isfinite(values[k])}
        if broken:
            raise NonFiniteLoss(broken)
        raw = self.losses[self.present].float()
        if self.log:
            hint, seen = "train this task without it, or choose another loss for it", self.host_losses[self.present]
            require_positive("", self.tasks, seen, self.present, hint, zero=True, option="trainer.log_losses")
        losses = self.transformed(raw)
        gram = None
        if self.present:
            gram = self.current.finish(losses)
            self._own_gradient(losses)
            self._add_extra()
        else:  # not one label in the whole step: nothing to solve, and no gradient
            self.current.leave()
            self.weights = self.head_weights = losses
        self.weighting.end_step(losses.detach(), self.present_tensor)
        looked_at = {} if gram is None else self._looked_at(gram)
        losses_K, weights_K = self._spread(self.host_losses[self.present]), self._spread(to_host(self.weights))
        return StepReport(losses_K, weights_K, solver_s=self.solver_s, **looked_at)

    # ---- for the passes -------------------------------------------------------------------------------------------

    @property
    def linear(self) -> bool:
        """Whether the weights of the losses are known before the forward pass."""
        return isinstance(self.weighting, LossWeighting) and self.weighting.linear and not self.log

    @property
    def present_tensor(self) -> Tensor:
        """`present` as int64 on the device."""
        return torch.tensor(self.present, dtype=torch.int64, device=self.device)

    def specific(self, k: int) -> list[nn.Parameter]:
        """The parameters that the task at position k reaches alone."""
        return [self.parameters[i] for i in self.reach.specific[self.tasks[k]]]

    def transformed(self, losses: Tensor) -> Tensor:
        """The losses (k,) as the weighting sees them."""
        return (losses + LOG_FLOOR).log() if self.log else losses

    def slopes(self) -> Tensor:
        """(k,) derivatives of the transformed losses of this step by the losses; ones without a transform."""
        return self._slopes(self.losses[self.present].float())

    def _slopes(self, losses: Tensor) -> Tensor:
        return 1.0 / (losses + LOG_FLOOR) if self.log else torch.ones_like(losses)

    def reduce_losses(self) -> None:
        """Sum them over ranks, once per step."""
        if not self.losses_reduced:
            self.reduce(self.losses)
            self.losses_reduced = True

    def loss_weights(self, losses: Tensor) -> Tensor:
        """W = ∂combine/∂L at raw `losses` (k,)."""
        assert isinstance(self.weighting, LossWeighting)
        with torch.enable_grad():
            leaf = losses.detach().requires_grad_()
            (weights,) = torch.autograd.grad(self.weighting.combine(self.transformed(leaf), self.present_tensor), leaf)
        return weights

    def solve(self, gram: Tensor) -> None:
        """Set the coefficients from the Gram matrix (k, k) of the raw gradients, which is on the CPU."""
        weighting = self.weighting
        if isinstance(weighting, LossWeighting):
            self.weights = self.head_weights = self.loss_weights(self.losses[self.present].float())
            return
        assert isinstance(weighting, GradientWeighting)
        if self.overflowed(gram):
            return
        raw = self.host_losses[self.present].float()
        slopes, present = self._slopes(raw), torch.tensor(self.present)
        gram = gram * slopes.double()[:, None] * slopes.double()
        began = time.perf_counter()
        shared, heads = weighting.coefficients(gram, self.transformed(raw), present, slopes)
        self.solver_s += time.perf_counter() - began
        self.weights = shared.to(self.device)
        self.head_weights = self.weights if torch.equal(shared, heads) else heads.to(self.device)

    def overflowed(self, gram: Tensor) -> bool:
        """An overflow of the loss scale: nothing is solved and no state changes.

        The scaler will find the infinities in the plain sum and skip the step.
        """
        if gram.isfinite().all():
            return False
        self.weights = self.head_weights = torch.ones(len(self.present), device=self.device)
        return True

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
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

    def weigh_specific(self) -> None:
        """Multiply the gradients of task-specific parameters, those of the plain losses, by `head_weights`."""
        for weight, k in zip(self.head_weights, self.present, strict=True):
            for parameter in self.specific(k):
                parameter.grad.mul_(weight)  # type: ignore[union-attr]

    # ---- the rest of a step ---------------------------------------------------------------------------------------

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
            total = self.weighting.combine(losses.detach(), self.present_tensor) * self.scale
            for parameter, grad in zip(own, torch.autograd.grad(total, own, allow_unused=True), strict=True):
                parameter.grad = grad

    def _add_extra(self) -> None:
        """What a method adds to the weighted gradient: a vector over all parameters, equal on every rank."""
        extra = self.weighting.extra_gradient()
        if extra is None:
            return
        parts = extra.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            grad = part.view_as(parameter) * self.scale
            set_grad(parameter, grad if parameter.grad is None else parameter.grad + grad)

    def _looked_at(self, gram: Tensor) -> dict[str, Tensor]:
        rows = torch.tensor(self.present)
        norms = gram.diagonal().clamp_min(0).sqrt()
        cosines = torch.full((len(self.tasks), len(self.tasks)), float("nan"))
        cosines[rows[:, None], rows] = (gram / (norms[:, None] * norms).clamp_min(1e-30)).float()
        return {"grad_norms": self._spread(norms), "cosines": cosines}

    def _spread(self, values: Tensor) -> Tensor:
        full = torch.full((len(self.tasks),), float("nan"))
        full[self.present] = values.detach().float()
        return full
