"""What a wrapper is: a change to how a step's gradient is made that composes with any weighting.

A wrapper stands between the loop and the weighting engine. The loop hands it a step's micro-batches; the wrapper hands
losses (perhaps others than the tasks' own) to the engine, as the loop would, and may add to what the engine leaves in
`.grad`. What the engine promises stays true: losses and gradients of the whole step, however it was split.

    wrapper.prepare(model, tasks, inputs)   # before the optimizer asks for its parameters
    wrapper.attach(Surroundings(...))       # once everything is built
    wrapper.start()                         # before the first step of a new run, not after a resume
    report = wrapper.gradients(micro_batches, counts, step, per_epoch)     # every parameter's .grad is ready
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.mixtures.base import Dataset
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.training.forward import Forward
from runner.types import Batch
from runner.weighting.base import Weighting
from runner.weighting.engine import Engine
from runner.weighting.step import Reduce, StepReport


@dataclass(frozen=True)
class Surroundings:
    """What a wrapper works with.

    Attributes:
        model: without compilation.
        forward: losses of a micro-batch.
        engine: of the run's weighting.
        train_sets: training data sets, as evaluation would read them.
        inputs: of the mixture.
        batch_size: examples per forward pass and process.
        rank, world_size: this process among the others.
        reduce: sum over processes, in place.
    """

    model: nn.Module
    forward: Forward
    engine: Engine
    train_sets: Mapping[str, Dataset]
    inputs: InputSpec
    batch_size: int
    rank: int
    world_size: int
    reduce: Reduce


class Wrapper(nn.Module):
    """The step as the weighting alone would do it. State in parameters and buffers is saved in the checkpoint.

    Args:
        weighting: the run's.
    """

    one_backward: ClassVar[bool] = False
    """True where the engine gets a step's gradients ready made, in one `backward` call: no mode but `parameters` of the
    weighting, no parts of a batch, no logarithms of losses then (`runner.config.weighting_fit`)."""

    second_derivatives: ClassVar[bool] = False
    """True where gradients of gradients are taken, which compiled models do not have."""

    looks_inside: ClassVar[bool] = False
    """True where more is made of a forward pass than the weighting's backward passes: no mode but `parameters` of the
    weighting and no compiled model then."""

    changes_structure: ClassVar[bool] = False
    """True where what the model's parameters stand for changes during training, so that they cannot be averaged."""

    architecture: ClassVar[str | None] = None
    """The option of the only architecture that it works with; None works with any."""

    needs_dense: ClassVar[bool] = False
    """True where it works on dense tasks only."""

    around: Surroundings

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.task_names = list(weighting.task_names)

    def prepare(self, model: nn.Module, tasks: Mapping[str, Task], inputs: InputSpec) -> None:
        """Called once, before parameters are asked for: makes what depends on the model.

        Raises:
            UserError: the model is not one that it works with.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of own parameters for the optimizer."""
        own = [p for p in self.parameters() if p.requires_grad]
        return [{"params": own}] if own else []

    def attach(self, around: Surroundings) -> None:
        """Called once, before anything is loaded from a checkpoint."""
        self.around = around

    def start(self) -> None:
        """Called before the first step of a run; not when it goes on from a checkpoint."""

    def losses(self, forward: Forward) -> Forward:
        """The losses that training sees, given the tasks' own."""
        return forward

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        """Leave the step's gradient, times the loss scale, in `.grad`.

        Args:
            micro_batches: of this rank.
            counts: (M, K) labelled elements per micro-batch and task over all ranks, or (K,) of the whole step.
            step: from 0. per_epoch: steps of an epoch.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite, on every rank alike.
        """
        return plain_gradients(self.around.engine, self.around.forward, micro_batches, counts, step, per_epoch)


def plain_gradients(
    engine: Engine, forward: Forward, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int
) -> StepReport:
    """A step without a wrapper; arguments as in `Wrapper.gradients`."""
    engine.begin(counts, step, per_epoch)
    for batch in micro_batches:
        engine.backward(forward.loss_sums(batch))
    return engine.finish()


class KnownLoss(torch.autograd.Function):
    """A scalar whose value and gradient are known: what lets an engine aggregate gradients that were made elsewhere."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        """`value`, as a function of `parameters` with gradient `grads`."""
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, one per parameter."""
        return None, None, *(upstream * grad for grad in ctx.grads)
