"""Task-based flat regions: sharpness-aware minimisation for each task by itself (Phan et al. 2022)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat
from runner.randomness import rng_state
from runner.training.second_forward import buffers_kept, random_replayed
from runner.training.wrappers.base import KnownLoss, Surroundings, Wrapper
from runner.types import Batch, Group
from runner.weighting.base import LossWeighting, Weighting
from runner.weighting.engine import Engine
from runner.weighting.step import StepReport, set_grad

EPS = 1e-12


class TaskSAM(Wrapper):
    """Each task's gradient in two parts, aggregated apart: g_k, and what makes its minimum flat, g_k^SAM - g_k.

    With θ the shared parameters and φ_k those of task k alone (arXiv 2211.13723, section 3.4 and algorithm 1):

        ε_k = ρ ∂L_k/∂θ / ‖∂L_k/∂θ‖,   δ_k = ρ ∂L_k/∂φ_k / ‖∂L_k/∂φ_k‖
        g_k^SAM = ∂L_k/∂θ at (θ + ε_k, φ_k + δ_k)
        θ follows  A(g_1 … g_K) + A'(g_1^SAM - g_1 … g_K^SAM - g_K),   φ_k follows ∂L_k/∂φ_k at the same point

    A is the run's weighting and A' a second one of the same kind with a state of its own. A weighting of losses has one
    set of weights, so that there the sum is Σ w_k g_k^SAM. The passes at the moved weights repeat the step's examples
    and random numbers, and leave BatchNorm's statistics as they were. The coefficients in the log are those of A.

    Args:
        rho: ρ.
        adaptive: ε = ρ θ²∘g / ‖|θ|∘g‖, which does not change when layers are rescaled (Kwon et al. 2021).
    """

    one_backward: ClassVar[bool] = True

    def __init__(self, weighting: Weighting, *, rho: PositiveFloat = 0.05, adaptive: bool = False) -> None:
        super().__init__(weighting)
        self.rho, self.adaptive = rho, adaptive
        self.flat = None if isinstance(weighting, LossWeighting) else copy.deepcopy(weighting)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [] if self.flat is None else self.flat.parameter_groups()

    def attach(self, around: Surroundings) -> None:
        super().attach(around)
        engine = around.engine
        self.reached = {k: sorted(engine.reach.reached[task]) for k, task in enumerate(engine.tasks)}
        self.shared = set(engine.reach.shared)
        self._flat_engine: Engine | None = None
        if self.flat is not None:
            self._flat_engine = Engine(
                self.flat,
                engine.parameters,
                engine.reach,
                micro_batches=1,
                reduce=around.reduce,
                device=engine.device,
                loss_scale=engine.loss_scale,
                skippable=engine.skippable,
            )

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        engine = self.around.engine
        counts = counts.reshape(-1, len(self.task_names)).sum(0)
        engine.begin(counts, step, per_epoch)
        rng: list[dict[str, Any]] = []
        losses, plain = self._pass(micro_batches, engine.present, remember=rng)
        sharp = plain
        whole = _finite([losses, *(g for grads in plain.values() for g in grads)])
        if whole:  # if not, the engine or the loss scaler says so
            sharp = {k: self._at_the_edge(k, plain[k], micro_batches, rng) for k in engine.present}
        if self._flat_engine is None:
            self._feed(engine, losses, sharp)
            return engine.finish()
        own = {k: [i not in self.shared for i in self.reached[k]] for k in engine.present}
        mixed = {
            k: [s if alone else p for s, p, alone in zip(sharp[k], plain[k], own[k], strict=True)]
            for k in engine.present
        }
        self._feed(engine, losses, mixed)
        report = engine.finish()
        if not whole:
            return report
        kept = [p.grad for p in engine.parameters]
        rest = {
            k: [torch.zeros_like(s) if alone else s - p for s, p, alone in zip(sharp[k], plain[k], own[k], strict=True)]
            for k in engine.present
        }
        self._flat_engine.begin(counts, step, per_epoch)
        self._feed(self._flat_engine, losses, rest)
        self._flat_engine.finish()
        for index, (parameter, grad) in enumerate(zip(engine.parameters, kept, strict=True)):
            if grad is None:
                parameter.grad = None
            elif index in self.shared and parameter.grad is not None:
                set_grad(parameter, grad + parameter.grad)
            else:
                parameter.grad = grad
        return report

    # ---- gradients of single tasks ----------------------------------------------------------------------------------

    def _pass(
        self, micro_batches: Sequence[Batch], tasks: Sequence[int], remember: list[dict[str, Any]]
    ) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """(K,) float64 global losses, and task → global gradients of the parameters that it reaches, unscaled."""
        engine = self.around.engine
        losses = torch.zeros(len(engine.tasks), dtype=torch.float64, device=engine.device)
        grads = {k: [torch.zeros_like(engine.parameters[i]) for i in self.reached[k]] for k in tasks}
        for batch in micro_batches:
            remember.append(rng_state())
            sums = self.around.forward.loss_sums(batch)
            here = [k for k in tasks if engine.tasks[k] in sums]
            for n, k in enumerate(here):
                losses[k] += self._add(grads[k], k, sums[engine.tasks[k]], keep_graph=n + 1 < len(here))
        for k in tasks:
            self._reduce(grads[k])
        return self.around.reduce(losses), grads

    def _add(self, grads: list[Tensor], k: int, loss_sum: Tensor, keep_graph: bool = False) -> Tensor:
        """Add the gradient of one micro-batch; returns its part of the loss."""
        engine = self.around.engine
        loss = loss_sum.float() / engine.counts[k].item()
        if loss.requires_grad and grads:
            parameters = [engine.parameters[i] for i in self.reached[k]]
            found = torch.autograd.grad(loss * engine.scale, parameters, retain_graph=keep_graph, allow_unused=True)
            for total, grad in zip(grads, found, strict=True):
                if grad is not None:
                    total.add_(grad, alpha=1 / engine.scale)
        return loss.detach().double()

    def _reduce(self, grads: list[Tensor]) -> None:
        """Sum over processes in one flat message."""
        if self.around.world_size == 1 or not grads:
            return
        flat = self.around.reduce(torch.cat([g.reshape(-1) for g in grads]))
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def _at_the_edge(
        self, k: int, plain: list[Tensor], micro_batches: Sequence[Batch], rng: Sequence[dict[str, Any]]
    ) -> list[Tensor]:
        """Gradients of task k where its loss is, to first order, the largest within ρ."""
        engine, name = self.around.engine, self.around.engine.tasks[k]
        parameters = [engine.parameters[i] for i in self.reached[k]]
        grads = [torch.zeros_like(p) for p in parameters]
        with moved(parameters, self._steps(k, parameters, plain)), buffers_kept(self.around.model):
            for batch, state in zip(micro_batches, rng, strict=True):
                alone = [
                    Group(group.name, group.inputs, {name: group.targets[name]}, group.ids)
                    for group in batch
                    if name in group.targets
                ]
                if alone:
                    with random_replayed(state):
                        self._add(grads, k, self.around.forward.loss_sums(alone)[name])
        self._reduce(grads)
        return grads

    def _steps(self, k: int, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """ε_k for the shared parameters and δ_k for the task's own, each of length ρ."""
        steps: list[Tensor] = []
        scaled = [(p.detach().abs() * g if self.adaptive else g) for p, g in zip(parameters, grads, strict=True)]
        norms = {}
        for shared in (True, False):
            parts = [s for s, i in zip(scaled, self.reached[k], strict=True) if (i in self.shared) == shared]
            norms[shared] = torch.stack([s.double().square().sum() for s in parts]).sum().sqrt() if parts else None
        for parameter, value, i in zip(parameters, scaled, self.reached[k], strict=True):
            norm = norms[i in self.shared]
            assert norm is not None
            direction = parameter.detach().abs() * value if self.adaptive else value
            steps.append(direction * (self.rho / (norm + EPS)).to(direction.dtype))
        return steps

    def _feed(self, engine: Engine, losses: Tensor, grads: dict[int, list[Tensor]]) -> None:
        """Hand global losses and gradients to an engine, which sums over processes: so one of them gives all of it."""
        sums = {}
        for k in engine.present if self.around.rank == 0 else []:
            count = float(engine.counts[k])
            parameters = [engine.parameters[i] for i in self.reached[k]]
            scaled = [grad * count for grad in grads[k]]  # the engine divides by the count
            sums[engine.tasks[k]] = KnownLoss.apply((losses[k] * count), scaled, *parameters)
        engine.backward(sums)


def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every value is finite; one look at the device, whatever their number."""
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())


@contextmanager
def moved(parameters: Sequence[nn.Parameter], steps: Sequence[Tensor]) -> Iterator[None]:
    """Parameters at θ + ε inside; afterwards they are what they were, to the bit."""
    values = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
