"""Gradients of independent parts of a step's batch: the matrix of their inner products, then one weighted pass."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from runner.weighting.base import CrossWeighting, rescaled
from runner.weighting.buffer import TaskGradients
from runner.weighting.engine import Engine, Pass
from runner.weighting.step import add_grad, set_grad, to_host


class CrossPass(Pass):
    """Part A fills the K×P buffer, part B takes its products with it, part C gives the gradient: 2K + 1 passes.

    Products are linear in the gradients of part B, so those of its micro-batches and ranks simply add up; only part A
    needs a buffer. Task-specific parameters follow the losses of all three parts.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        assert isinstance(engine.weighting, CrossWeighting)
        first, second, third = engine.weighting.parts
        unit, left = divmod(engine.micro_batches, first + second + third)
        if left:
            raise ValueError(f"{engine.micro_batches} micro-batches cannot be cut into shares {engine.weighting.parts}")
        self.borders = (first * unit, (first + second) * unit, engine.micro_batches)
        self.grads = TaskGradients(len(engine.tasks), engine.shared, engine.device)
        self.second = TaskGradients(1, engine.shared, engine.device)
        self.rest = TaskGradients(len(engine.tasks), engine.rest, engine.device)

    def begin(self) -> None:
        engine = self.engine
        if len(engine.micro_counts) != engine.micro_batches:
            raise ValueError("methods that compare parts of a batch need the counts of every micro-batch")
        a, b, c = self.borders
        # (3, K): a part's mean loss is this times its share of the whole step's mean loss
        parts = torch.stack([engine.micro_counts[i:j].sum(0) for i, j in ((0, a), (a, b), (b, c))])
        self.factors = torch.where(parts > 0, engine.counts / parts.clamp_min(1e-300), 0.0)
        self.both = [k for k in engine.present if parts[0, k] > 0 and parts[1, k] > 0]
        self.micro = 0
        self.cross = torch.zeros(len(engine.tasks), len(engine.tasks), dtype=torch.float64, device=engine.device)
        self.grads.begin()
        self.rest.begin()

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        a, b, _ = self.borders
        partial = {k: loss for k, loss in partial.items() if loss.requires_grad}
        if self.micro == b:
            self._update()
        if self.micro < b:
            self._per_task(partial, first=self.micro < a)
        else:
            self._weighted(partial)
        self.micro += 1
        if self.micro == a:
            matrix_KP = self.engine.reduce(self.grads.finish())
            matrix_KP.mul_((self.factors[0] / self.engine.scale).to(matrix_KP)[:, None])

    def finish(self, losses: Tensor) -> Tensor | None:
        engine = self.engine
        engine.reduce_gradients(engine.shared + [p for k in engine.present for p in engine.specific(k)])
        reached = set(engine.reach.of(engine.present))
        for i in engine.reach.shared:
            if i not in reached:
                engine.parameters[i].grad = None
        engine.weigh_specific()
        if engine.rest:
            weights_K = torch.zeros(len(engine.tasks), device=engine.device)
            weights_K[engine.present] = engine.head_weights
            engine.reduce(self.rest.finish())
            for i, grad in zip(engine.reach.rest, self.rest.combine(weights_K), strict=True):
                if i in reached:
                    set_grad(engine.parameters[i], grad)
        return None

    def _update(self) -> None:
        engine, weighting = self.engine, self.engine.weighting
        assert isinstance(weighting, CrossWeighting)
        rows = torch.tensor(self.both, dtype=torch.int64)
        cross = to_host(engine.reduce(self.cross))
        cross = (cross * self.factors[1][:, None] / engine.scale)[rows[:, None], rows]
        began = time.perf_counter()
        # An overflow of the loss scale moves no weight: the scaler finds it in the third part or in the next step.
        if self.both and cross.isfinite().all():
            weighting.update(cross, rows)
        weights = rescaled(weighting.current(torch.tensor(engine.present)).float(), weighting.scale)
        engine.solver_s += time.perf_counter() - began
        engine.weights = weights.to(engine.device)
        engine.head_weights = engine.weights if weighting.heads == "weighted" else torch.ones_like(engine.weights)

    def _per_task(self, partial: Mapping[int, Tensor], first: bool) -> None:
        engine = self.engine
        rest = len(engine.rest)
        for n, (k, loss) in enumerate(partial.items()):
            own = engine.specific(k)
            buffer, row = (self.grads, k) if first else (self.second, 0)
            if not first:
                buffer.begin()
            grads = buffer.backward(row, loss * engine.scale, engine.rest + own, retain_graph=n + 1 < len(partial))
            if not first:
                self.cross[k] += torch.mv(self.grads.matrix_KP, self.second.matrix_KP[0]).double()
            if rest:
                self.rest.add(k, grads[:rest])
            for parameter, grad in zip(own, grads[rest:], strict=True):
                add_grad(parameter, grad)

    def _weighted(self, partial: Mapping[int, Tensor]) -> None:
        """The third part: coefficients on the shared parameters, plain losses on the others."""
        engine = self.engine
        if not partial:
            return
        factors = self.factors[2].tolist()
        weights = [engine.weights[engine.present.index(k)] * factors[k] for k in partial]
        total = torch.stack([w.float() * loss for w, loss in zip(weights, partial.values(), strict=True)]).sum()
        if engine.shared:
            torch.autograd.backward(total * engine.scale, inputs=engine.shared, retain_graph=True)
        for n, (k, loss) in enumerate(partial.items()):
            own = engine.specific(k)
            if own or engine.rest:
                grads = torch.autograd.grad(
                    loss * engine.scale, engine.rest + own, retain_graph=n + 1 < len(partial), allow_unused=True
                )
                if engine.rest:
                    self.rest.add(k, grads[: len(engine.rest)])
                for parameter, grad in zip(own, grads[len(engine.rest) :], strict=True):
                    add_grad(parameter, grad)
