"""Per-task gradients of the shared representation: as cheap as plain training, and an approximation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import UserError
from runner.weighting.buffer import TaskGradients, gram_matrix
from runner.weighting.cut import Cut, cut, map_tensors
from runner.weighting.engine import Engine, Pass
from runner.weighting.step import add_grad, identity, set_grad, to_host


class RepresentationPass(Pass):
    """The graph is cut behind the shared trunk: K backward passes through the heads, one through the trunk.

    With Z the features (all that the trunk hands to the heads) the Gram matrix is that of ∂L_k/∂Z: an upper bound of
    the parameters' up to the trunk's Jacobian (Sener and Koltun 2018, section 3.3). Features of different examples are
    different coordinates, so the matrices of micro-batches and ranks add up. With several micro-batches the
    coefficients are known too late for the one pass: the trunk is then passed K times, into a K×P buffer.

    Raises:
        UserError: the architecture has no single trunk that all shared parameters lie in.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        name = getattr(type(engine.model), "representation", None)
        if engine.model is None or name is None:
            raise UserError(
                "weighting.mode=representation needs one trunk that all tasks share, which "
                f"{type(engine.model).__name__} does not have",
                "use weighting.mode=parameters or gram, or architecture=hard_sharing",
                "runner ls architecture",
            )
        trunk: nn.Module = getattr(engine.model, name)
        inside = {id(p) for p in trunk.parameters()}
        outside = [i for i in engine.reach.shared if id(engine.parameters[i]) not in inside]
        if outside:
            names = [n for n, p in engine.model.named_parameters() if p.requires_grad]
            raise UserError(
                f"weighting.mode=representation: shared parameters lie outside of '{name}', such as "
                f"'{names[outside[0]]}'",
                "use weighting.mode=parameters or gram",
            )
        self.trunk = [i for i, p in enumerate(engine.parameters) if id(p) in inside]
        self.own = {
            k: [i for i in engine.reach.specific[task] if id(engine.parameters[i]) not in inside]
            for k, task in enumerate(engine.tasks)
        }
        parameters = [engine.parameters[i] for i in self.trunk]
        self.grads = TaskGradients(len(engine.tasks), parameters, engine.device) if engine.micro_batches > 1 else None
        self.cutting = False
        trunk.register_forward_hook(self._hook)

    def begin(self) -> None:
        tasks = len(self.engine.tasks)
        self.gram = torch.zeros(tasks, tasks, dtype=torch.float64)
        self.cuts: list[Cut] = []
        self.last: list[Cut] = []
        self.features: list[Tensor] = []
        self.cutting = True
        if self.grads is not None:
            self.grads.begin()

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        engine = self.engine
        cuts, self.cuts = self.cuts, []
        features = [torch.zeros(len(engine.tasks), c.shape.numel(), device=engine.device) for c in cuts]
        with_graph = [(k, loss) for k, loss in partial.items() if loss.requires_grad]
        for n, (k, loss) in enumerate(with_graph):
            own = [engine.parameters[i] for i in self.own[k]]
            inputs = [c.entry for c in cuts] + own
            grads = torch.autograd.grad(
                loss * engine.scale, inputs, retain_graph=n + 1 < len(with_graph), allow_unused=True
            )
            for matrix_KZ, grad in zip(features, grads, strict=False):
                if grad is not None:
                    matrix_KZ[k] = grad.reshape(-1)
            for parameter, grad in zip(own, grads[len(cuts) :], strict=True):
                add_grad(parameter, grad)
        for matrix_KZ in features:
            self.gram += gram_matrix(matrix_KZ)
        if self.grads is None:
            self.last, self.features = cuts, features
        elif cuts:
            for n, (k, _) in enumerate(with_graph):
                self.grads.add(k, self._through_trunk(cuts, [f[k] for f in features], n + 1 < len(with_graph)))

    def finish(self, losses: Tensor) -> Tensor:
        engine = self.engine
        rows = torch.tensor(engine.present)
        gram = self.gram if engine.reduce is identity else to_host(engine.reduce(self.gram.to(engine.device)))
        gram = gram[rows[:, None], rows] / engine.scale**2
        engine.solve(gram)
        weights_K = torch.zeros(len(engine.tasks), device=engine.device)
        weights_K[engine.present] = engine.weights
        reached = set(engine.reach.of(engine.present))
        trunk = [engine.parameters[i] for i in self.trunk if i in reached]
        if self.grads is not None:
            engine.reduce(self.grads.finish())
            for i, grad in zip(self.trunk, self.grads.combine(weights_K), strict=True):
                if i in reached:
                    set_grad(engine.parameters[i], grad)
        else:
            if self.last:
                grads = self._through_trunk(self.last, [weights_K @ f for f in self.features], False)
                for i, grad in zip(self.trunk, grads, strict=True):
                    if i in reached and grad is not None:
                        set_grad(engine.parameters[i], grad)
            engine.reduce_gradients(trunk)
        self.leave()
        engine.reduce_gradients([engine.parameters[i] for k in engine.present for i in self.own[k]])
        for weight, k in zip(engine.head_weights, engine.present, strict=True):
            for i in self.own[k]:
                engine.parameters[i].grad.mul_(weight)  # type: ignore[union-attr]
        return gram

    def leave(self) -> None:
        self.cutting = False
        self.cuts, self.last, self.features = [], [], []

    def _through_trunk(self, cuts: list[Cut], vectors: list[Tensor], retain: bool) -> tuple[Tensor | None, ...]:
        """Gradients of the trunk's parameters, given those of its features (flat)."""
        outputs = [v.view(c.shape).to(c.dtype) for v, c in zip(vectors, cuts, strict=True)]
        parameters = [self.engine.parameters[i] for i in self.trunk]
        return torch.autograd.grad([c.outer for c in cuts], parameters, outputs, retain_graph=retain, allow_unused=True)

    def _hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.cutting or self.engine.current is not self or not torch.is_grad_enabled():
            return None

        def change(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            entry, made = cut(tensor)
            self.cuts.append(made)
            return entry

        return map_tensors(output, change)
