"""The ways of making a step's backward passes; which one a weighting gets is decided in `choose`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from runner.weighting.base import CrossWeighting, LossWeighting, MatrixWeighting
from runner.weighting.buffer import TaskGradients, gram_matrix
from runner.weighting.engine import Engine, Pass
from runner.weighting.step import add_grad, set_grad


def choose(engine: Engine) -> Pass:
    """The pass for an engine's weighting."""
    from runner.weighting.cross import CrossPass
    from runner.weighting.last_layer import LastLayerPass, LastLayerWeighting
    from runner.weighting.lockstep import GramPass
    from runner.weighting.representation import RepresentationPass
    from runner.weighting.tracked import TrackedPass, TrackedWeighting

    weighting = engine.weighting
    if isinstance(weighting, CrossWeighting):
        return CrossPass(engine)
    if isinstance(weighting, LastLayerWeighting):
        return LastLayerPass(engine)
    if isinstance(weighting, TrackedWeighting):
        return TrackedPass(engine)
    if isinstance(weighting, LossWeighting):
        # A weighting whose weights depend on this step's losses needs all of them before its one backward pass. With
        # several micro-batches that would mean keeping every graph: per-task gradients are exact and bounded.
        late = not engine.linear and engine.micro_batches > 1
        return BufferPass(engine) if late else engine.weighted
    if weighting.mode == "gram":
        return GramPass(engine)
    if weighting.mode == "representation":
        return RepresentationPass(engine)
    return BufferPass(engine)


class WeightedPass(Pass):
    """One backward pass of the weighted sum: loss-only methods, and coefficients that are known already."""

    def begin(self) -> None:
        engine = self.engine
        self.known = True
        if engine.linear:
            engine.weights = engine.head_weights = engine.loss_weights(
                torch.ones(len(engine.present), device=engine.device)
            )
        elif isinstance(engine.weighting, LossWeighting):
            self.known = False

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        engine = self.engine
        if not self.known:
            engine.reduce_losses()
            engine.weights = engine.head_weights = engine.loss_weights(engine.losses[engine.present].float())
        partial = {k: loss for k, loss in partial.items() if loss.requires_grad}
        if not partial:
            return
        if engine.head_weights is engine.weights:
            weighted_backward(engine, partial, engine.weights)
            return
        own = [p for k in partial for p in engine.specific(k)] + engine.rest
        if engine.shared:
            weighted_backward(engine, partial, engine.weights, engine.shared, retain_graph=bool(own))
        if own:
            weighted_backward(engine, partial, engine.head_weights, own)

    def finish(self, losses: Tensor) -> None:
        engine = self.engine
        engine.reduce_gradients([engine.parameters[i] for i in engine.reach.of(engine.present)])


def weighted_backward(
    engine: Engine,
    partial: Mapping[int, Tensor],
    weights: Tensor,
    inputs: Sequence[nn.Parameter] | None = None,
    retain_graph: bool = False,
) -> None:
    """Add the gradient of Σ_k w_k L_k, times the loss scale, to `.grad`."""
    # Not Σ w·L over all tasks in one tensor: a missing task must not enter the graph with a zero.
    terms = [weights[engine.present.index(k)].detach() * loss for k, loss in partial.items()]
    torch.autograd.backward(torch.stack(terms).sum() * engine.scale, inputs=inputs, retain_graph=retain_graph)


class BufferPass(Pass):
    """K backward passes into the flat K×P buffer; parameters of one task accumulate in `.grad` as usual."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.grads = TaskGradients(len(engine.tasks), engine.shared, engine.device)
        self.rest = TaskGradients(len(engine.tasks), engine.rest, engine.device)

    def begin(self) -> None:
        self.grads.begin()
        self.rest.begin()

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        engine = self.engine
        with_graph = [(k, loss) for k, loss in partial.items() if loss.requires_grad]
        rest = len(engine.rest)
        for n, (k, loss) in enumerate(with_graph):
            own = engine.specific(k)
            grads = self.grads.backward(k, loss * engine.scale, engine.rest + own, retain_graph=n + 1 < len(with_graph))
            if rest:
                self.rest.add(k, grads[:rest])
            for parameter, grad in zip(own, grads[rest:], strict=True):
                add_grad(parameter, grad)

    def finish(self, losses: Tensor) -> Tensor:
        engine = self.engine
        grads_KP = self.grads.finish()
        engine.reduce(grads_KP)
        engine.reduce_gradients([p for k in engine.present for p in engine.specific(k)])
        rows = torch.tensor(engine.present)
        gram = gram_matrix(grads_KP)[rows[:, None], rows] / engine.scale**2
        shared = self._solve(gram, losses)
        self._set(
            engine.reach.shared,
            self.grads.combine(self._spread(engine.weights)) if shared is None else self.grads.split(shared),
        )
        engine.weigh_specific()
        if engine.rest:
            engine.reduce(self.rest.finish())
            self._set(engine.reach.rest, self.rest.combine(self._spread(engine.head_weights)))
        return gram

    def _solve(self, gram: Tensor, losses: Tensor) -> Tensor | None:
        """Sets the coefficients; returns the shared gradient (P,) where it is not simply their combination."""
        engine, weighting = self.engine, self.engine.weighting
        if not isinstance(weighting, MatrixWeighting):
            engine.solve(gram)
            return None
        if engine.overflowed(gram):
            return None
        slopes = engine.slopes()
        matrix = self.grads.matrix_KP
        grads_kP = matrix if len(engine.present) == len(engine.tasks) else matrix[engine.present]
        if engine.scale != 1 or engine.log:
            grads_kP = grads_kP.mul_((slopes / engine.scale)[:, None])
        began = time.perf_counter()
        shared, weights, heads = weighting.combine(grads_kP, losses, torch.tensor(engine.present))
        factor = weighting.factor(weights)
        engine.solver_s += time.perf_counter() - began
        engine.weights = weights * factor * slopes
        engine.head_weights = heads * slopes * (factor if weighting.heads == "weighted" else 1.0)
        return shared if factor == 1 and engine.scale == 1 else shared * (factor * engine.scale)

    def _set(self, indices: Sequence[int], grads: Sequence[Tensor]) -> None:
        reached = set(self.engine.reach.of(self.engine.present))
        for index, grad in zip(indices, grads, strict=True):
            if index in reached:
                set_grad(self.engine.parameters[index], grad)

    def _spread(self, weights: Tensor) -> Tensor:
        """(K,) with 0 for absent tasks."""
        weights_K = torch.zeros(len(self.engine.tasks), device=self.engine.device)
        weights_K[self.engine.present] = weights
        return weights_K
