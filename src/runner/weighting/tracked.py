"""Methods that follow every task's gradient with a running average, and combine the averages.

The averages are K×P floats that a checkpoint has to hold anyway. Where a step cannot be taken back, they are also the
only ones: the backward passes move the rows directly, and the gradients of single tasks are never held.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.tasks.base import Task
from runner.weighting.base import Heads, PerTaskWeighting, Scale
from runner.weighting.buffer import TaskGradients, combination, gram_matrix, in_columns
from runner.weighting.engine import Engine, Pass
from runner.weighting.step import add_grad, identity, set_grad, to_host


class TrackedWeighting(PerTaskWeighting):
    """Follows y_k ← (1 - r_k) y_k + r_k s_k ∇L_k from y = 0, and sees the rows y_k through their Gram matrix.

    The row of a task that is absent from a step stays. Cosines and norms in the log are those of y.

    Args:
        heads, scale, shared: see `PerTaskWeighting`; the engine applies `scale`.
    """

    needs: ClassVar[str] = "gradients"
    by_length: bool = False
    """Whether s depends on ‖∇L_k‖, so that a gradient must be complete before it can be added."""
    tracked: Tensor

    def __init__(
        self, tasks: Mapping[str, Task], heads: Heads, scale: Scale = "paper", shared: Sequence[str] | None = None
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.register_buffer("tracked", None)

    def attach(self, size: int, device: torch.device) -> None:
        """Called once with P; a checkpoint may have been read already, or is read later."""
        if self.tracked is None:
            self.tracked = torch.zeros(len(self.task_names), size, device=device)

    def track(self, losses: Tensor, present: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rates r (k,) and factors s (k,) of this step, on the losses' device; called once in a step that counts.

        Args:
            losses, present: as in `LossWeighting.combine`.
            norms: (k,) lengths of the gradients, if `by_length`.
        """
        raise NotImplementedError

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients (k,) of the rows y_k, of ∇L_k (for `scale` and the log) and of task-specific parameters.

        Args:
            gram: (k, k) float64 on the CPU, inner products of the rows that this step has moved.
            losses, present: as in `LossWeighting.combine`, on the CPU.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.tracked is None and prefix + "tracked" in state_dict:
            self.tracked = torch.empty_like(state_dict[prefix + "tracked"])
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Rows(TaskGradients):
    """The rows y_k as what backward passes write into."""

    def __init__(self, matrix_KP: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(len(matrix_KP), parameters, matrix_KP.device, matrix_KP)
        self.rates: dict[int, Tensor] = {}

    def _put(self, task: int, views: list[Tensor], grads: list[Tensor]) -> None:
        for view, grad in zip(views, grads, strict=True):
            view.lerp_(grad.to(view.dtype), self.rates[task])

    def _put_nothing(self, task: int, views: list[Tensor]) -> None:
        for view in views:
            view.mul_(1 - self.rates[task])

    def combined(self, weights_K: Tensor) -> list[Tensor]:
        """Σ_k w_k y_k in the parameters' shapes, in new memory."""
        if self.matrix_KP.device.type != "cpu":
            return self.split(combination(weights_K, self.matrix_KP))
        # Parameter by parameter: one vector of size P would be asked of the system, and paid for, in every step.
        sums = [torch.empty(p.shape) for p in self.parameters]
        rows = self.matrix_KP.split([p.numel() for p in self.parameters], dim=1)
        for total, part_KN in zip(sums, rows, strict=True):
            for out, piece in zip(in_columns(total.view(-1)), in_columns(part_KN), strict=True):
                torch.mv(piece.T, weights_K, out=out)
        return sums


class TrackedPass(Pass):
    """K backward passes into the averages.

    With one micro-batch the rates are known before the backward passes, and gradients go right into the rows. What they
    move cannot be moved back: where a step that is not finite may be skipped, or its losses are known only after the
    last micro-batch, the gradients of the step are gathered in a K×P buffer of their own first.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        assert isinstance(engine.weighting, TrackedWeighting)
        self.weighting = engine.weighting
        self.weighting.attach(sum(p.numel() for p in engine.shared), engine.device)
        self.direct = engine.micro_batches == 1 and not engine.skippable and not self.weighting.by_length
        self.gathered = None if self.direct else TaskGradients(len(engine.tasks), engine.shared, engine.device)
        self.rest = TaskGradients(len(engine.tasks), engine.rest, engine.device)
        self.rows: _Rows | None = None
        self.processes: Tensor | None = None

    def begin(self) -> None:
        if self.rows is None or self.rows.matrix_KP is not self.weighting.tracked:
            self.rows = _Rows(self.weighting.tracked, self.engine.shared)
        for buffer in (self.rows, self.gathered, self.rest):
            if buffer is not None:
                buffer.begin()
        self.factors: Tensor | None = None  # (k,) what the losses were multiplied by before their backward pass

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        engine = self.engine
        if self.direct:
            self._before()
        into = self.rows if self.gathered is None else self.gathered
        assert into is not None
        with_graph = [(k, loss) for k, loss in partial.items() if loss.requires_grad]
        rest = len(engine.rest)
        for n, (k, loss) in enumerate(with_graph):
            own = engine.specific(k)
            factor = engine.scale if self.factors is None else self.factors[engine.present.index(k)]
            grads = into.backward(k, loss * factor, engine.rest + own, retain_graph=n + 1 < len(with_graph))
            if rest:
                self.rest.add(k, grads[:rest])
            for parameter, grad in zip(own, grads[rest:], strict=True):
                add_grad(parameter, grad)

    def finish(self, losses: Tensor) -> Tensor:
        engine, weighting, rows = self.engine, self.weighting, self.rows
        assert rows is not None
        engine.reduce_gradients([p for k in engine.present for p in engine.specific(k)])
        if engine.rest:
            engine.reduce(self.rest.finish())
        if self.gathered is None:
            self._after()
        elif not self._merge(self.gathered, losses):
            engine.weights = engine.head_weights = torch.ones(len(engine.present), device=engine.device)
            self._set(self.gathered.combine(self._spread(engine.weights)))
            self._set_others(engine.head_weights)
            return torch.full((len(engine.present),) * 2, float("nan"), dtype=torch.float64)
        chosen = torch.tensor(engine.present)
        gram = gram_matrix(rows.matrix_KP)[chosen[:, None], chosen]
        if engine.overflowed(gram):  # of gradients that went right into the rows: the run ends here
            self._set(rows.combined(self._spread(engine.weights)))
            self._set_others(engine.head_weights)
            return gram
        began = time.perf_counter()
        seen = engine.transformed(engine.host_losses[engine.present].float())
        on_rows, weights, heads = weighting.solve(gram, seen, chosen)
        factor = weighting.factor(weights)
        on_rows, weights = on_rows * factor, weights * factor
        heads = heads * factor if weighting.heads == "weighted" else heads
        engine.solver_s += time.perf_counter() - began
        on_rows, weights, heads = (values.to(engine.device, torch.float32) for values in (on_rows, weights, heads))
        engine.weights, engine.head_weights = weights * engine.slopes(), heads * engine.slopes()
        self._set(rows.combined(self._spread(on_rows * engine.scale)))
        # Task-specific gradients are those of the losses times what these were multiplied by.
        self._set_others(
            engine.head_weights if self.factors is None else engine.head_weights * (engine.scale / self.factors)
        )
        return gram

    def _before(self) -> None:
        """Rates and factors of this step, before its backward passes."""
        engine = self.engine
        assert self.rows is not None
        engine.reduce_losses()
        losses = engine.losses[engine.present].float()
        rates, slopes = self.weighting.track(engine.transformed(losses), engine.present_tensor, None)
        self.rows.rates = dict(zip(engine.present, rates, strict=True))
        self.factors = slopes * engine.slopes()
        if engine.reduce is not identity:
            # Each process adds its share to a whole row; their mean is the row with the gradient of all.
            if self.processes is None:
                self.processes = engine.reduce(torch.ones((), device=engine.device))
            self.factors = self.factors * self.processes

    def _after(self) -> None:
        """The rows of this step, over all processes."""
        engine, rows = self.engine, self.rows
        assert rows is not None
        for k in engine.present:
            if not rows.written[k]:
                rows.matrix_KP[k].mul_(1 - rows.rates[k])
        if self.processes is None:
            return
        whole = len(engine.present) == len(engine.tasks)
        for part in [rows.matrix_KP] if whole else [rows.matrix_KP[k] for k in engine.present]:
            engine.reduce(part)
            part.div_(self.processes)

    def _merge(self, gathered: TaskGradients, losses: Tensor) -> bool:
        """Move the rows by the gathered gradients; False, and nothing moved, where these are not finite."""
        engine, rows = self.engine, self.rows
        assert rows is not None
        matrix_KP = engine.reduce(gathered.finish())
        slopes = engine.slopes() / engine.scale
        if engine.skippable and matrix_KP.numel():
            largest = to_host(torch.linalg.vector_norm(matrix_KP, math.inf))
            if not largest.isfinite():
                return False
        norms = (
            torch.linalg.vector_norm(matrix_KP, dim=1)[engine.present] * slopes if self.weighting.by_length else None
        )
        rates, factors = self.weighting.track(losses, engine.present_tensor, norms)
        for k, rate, factor in zip(engine.present, rates, factors * slopes, strict=True):
            for row, grad in zip(in_columns(rows.matrix_KP[k]), in_columns(matrix_KP[k]), strict=True):
                row.lerp_(grad.mul_(factor), rate)
        return True

    def _set(self, grads: Sequence[Tensor]) -> None:
        reached = set(self.engine.reach.of(self.engine.present))
        for index, grad in zip(self.engine.reach.shared, grads, strict=True):
            if index in reached:
                set_grad(self.engine.parameters[index], grad)

    def _set_others(self, weights: Tensor) -> None:
        """The gradients of the parameters that do not count as shared, times these weights (k,)."""
        engine = self.engine
        for weight, k in zip(weights, engine.present, strict=True):
            for parameter in engine.specific(k):
                parameter.grad.mul_(weight)  # type: ignore[union-attr]
        if engine.rest:
            reached = set(engine.reach.of(engine.present))
            for index, grad in zip(engine.reach.rest, self.rest.combine(self._spread(weights)), strict=True):
                if index in reached:
                    set_grad(engine.parameters[index], grad)

    def _spread(self, weights: Tensor) -> Tensor:
        """(K,) with 0 for absent tasks."""
        weights_K = torch.zeros(len(self.engine.tasks), device=self.engine.device)
        weights_K[self.engine.present] = weights
        return weights_K
