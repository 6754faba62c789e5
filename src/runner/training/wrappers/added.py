"""What wrappers share that add a loss which belongs to no task: distillation, a regulariser of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from runner.training.wrappers.base import Wrapper
from runner.types import Batch
from runner.weighting.step import StepReport, add_grad


class AddedLoss(Wrapper):
    """The gradient of a loss of one's own beside what the weighting makes of the tasks' losses.

    A subclass says what it needs to see of a forward pass (`watching`) and what it makes of it (`added`). The gradient
    is taken before the weighting's, on the same graph, and added after it: no weighting sees or scales it. It reaches
    the model and the wrapper's own parameters, and is that of the whole step however the step was split.

    Attributes:
        total: examples of the step over all processes, for means.
    """

    looks_inside: ClassVar[bool] = True
    total: int

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the forward pass of a micro-batch."""
        yield

    def added(self, batch: Batch) -> Tensor | None:
        """This micro-batch's part of the added loss, in the graph of the pass that was watched; None: it has none."""
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Before the first forward pass of a step."""

    def only(self, step: int) -> bool:
        """Whether the step follows the added loss alone: the tasks' losses are then reported, and left out."""
        return False

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        around, engine = self.around, self.around.engine
        examples = sum(len(group) for batch in micro_batches for group in batch)
        self.total = int(around.reduce(torch.tensor(float(examples), device=engine.device)))
        engine.begin(counts, step, per_epoch)
        self.begin(step)
        parameters = [*engine.parameters, *(p for p in self.parameters() if p.requires_grad)]
        for parameter in parameters[len(engine.parameters) :]:
            parameter.grad = None
        extra: list[Tensor | None] = [None] * len(parameters)
        for batch in micro_batches:
            with self.watching():
                sums = around.forward.loss_sums(batch)
                part = self.added(batch)
            if part is not None and part.requires_grad:
                found = torch.autograd.grad(part * engine.scale, parameters, retain_graph=True, allow_unused=True)
                extra = [_sum(one, other) for one, other in zip(extra, found, strict=True)]
            engine.backward(sums)
        report = engine.finish()
        if self.only(step):
            for parameter in engine.parameters:
                parameter.grad = None
        for parameter, grad in zip(parameters, self._over_ranks(parameters, extra), strict=True):
            add_grad(parameter, grad)
        return report

    def _over_ranks(self, parameters: Sequence[nn.Parameter], extra: list[Tensor | None]) -> list[Tensor | None]:
        """Sums over processes; what no process reaches stays None."""
        if self.around.world_size == 1:
            return extra
        device = self.around.engine.device
        reached = self.around.reduce(torch.tensor([float(grad is not None) for grad in extra], device=device))
        at = [i for i, ranks in enumerate(reached.tolist()) if ranks > 0]
        if at:
            whole = [torch.zeros_like(parameters[i]) if (g := extra[i]) is None else g for i in at]
            flat = self.around.reduce(torch.cat([grad.reshape(-1) for grad in whole]))
            for i, part in zip(at, flat.split([grad.numel() for grad in whole]), strict=True):
                extra[i] = part.view_as(parameters[i])
        return extra


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
