"""What a weighting is: losses (and, where needed, their gradients) → the gradient that is applied.

Six kinds. A `LossWeighting` is a differentiable function of the losses; the model's gradient is Σ_k w_k ∇L_k with
w = ∂combine/∂L. A `GradientWeighting` looks at the Gram matrix of the per-task gradients and returns coefficients
c_k; the gradient of the shared parameters is Σ_k c_k ∇L_k. A `MatrixWeighting` sees the gradients themselves, a
`TrackedWeighting` (in `runner.weighting.tracked`) running averages of them, a `CrossWeighting` those of independent
parts of the batch, a `LastLayerWeighting` (in `runner.weighting.last_layer`) the lengths of those of one layer. All see
global losses: summed over micro-batches and processes, so that nothing they do depends on how a batch was split (see
`runner.weighting.engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.tasks.base import Task
from runner.weighting.bilevel import LookAhead
from runner.weighting.step import to_host

Heads = Literal["weighted", "unweighted"]
"""Whether the parameters of a single task get its coefficient too, or the gradient of its plain loss."""
Scale = Literal["paper", "one", "tasks"]
"""The coefficients as the paper has them, or so that their absolute values sum to 1 or to the number of present tasks:
methods whose papers disagree about this train at different rates with the same `optimizer.lr`."""
Mode = Literal["parameters", "gram", "representation"]
"""Where per-task gradients are taken. `parameters`: of the shared parameters, in one K×P buffer. `gram`: the same
coefficients without the buffer: the Gram matrix is formed layer by layer during the K backward passes, one more pass
applies it. `representation`: of the features that the shared part hands to the tasks, which costs no more than plain
training; an approximation of the first two, since a gradient there is not one of the parameters."""

MODES = {
    "gram": "coefficients from the Gram matrix alone: K gradients of one layer at a time, and one more backward pass",
    "representation": "an approximation: gradients of the shared representation stand for those of the parameters",
}
"""What a reader should know of a run in that mode."""


def rescaled(coefficients: Tensor, scale: Scale) -> Tensor:
    """Coefficients (k,) as `scale` says; all zero stays all zero."""
    if scale == "paper":
        return coefficients
    total = coefficients.abs().sum()
    target = 1.0 if scale == "one" else float(len(coefficients))
    return coefficients * (target / total).where(total > 0, 1.0)


class Weighting(nn.Module):
    """Common to all kinds; learnable and buffered state is saved in the checkpoint through `state_dict`.

    Args:
        tasks: name → task, in the order of every loss vector.
    """

    needs: ClassVar[str]
    log_losses: ClassVar[bool] = True
    """Whether `trainer.log_losses` composes with it; not so where a method needs positive losses, or the losses of the
    whole step before its last part. It is refused with those before a run starts."""
    parts: ClassVar[tuple[int, ...]] = (1,)
    """Shares of the parts that a step is cut into (see `CrossWeighting`); their sum divides the micro-batches."""
    mode: Mode = "parameters"
    shared_patterns: Sequence[str] | None = None

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.task_names = list(tasks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of own parameters for the optimizer; their keys override the optimizer's settings."""
        return []

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Called before the first forward pass of optimizer step `step` (from 0): epochs, warm-ups, random weights."""

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        """Called when the step's gradient is ready, with the global losses (k,) of the present tasks, float32."""

    wants_second_losses: ClassVar[bool] = False
    """True where the method needs the losses of the same batch again, after the optimizer step (one more forward)."""

    def after_update(self, losses: Tensor, present: Tensor) -> None:
        """Called with those losses, if `wants_second_losses`."""

    @property
    def per_example(self) -> Callable[[Tensor], Tensor] | None:
        """What to minimise in place of the losses (n,) of single examples; None for those losses themselves."""
        return None

    look_ahead_on: Literal["validation", "train"] | None = None
    """Where the examples come from that `look_ahead` gets besides those of the step; None does not call it."""

    def look_ahead(self, world: LookAhead) -> None:
        """Called before the forward passes of a step, if `look_ahead_on`; bilevel methods set their weights here."""

    def extra_gradient(self) -> Tensor | None:
        """A vector (P,) over all trainable parameters, added to the weighted gradient of this step; None for none."""
        return None


class LossWeighting(Weighting):
    """Needs the losses only: one forward, one backward."""

    needs: ClassVar[str] = "losses"
    linear: ClassVar[bool] = True
    """True where ∂combine/∂L does not depend on L: the weights are known before the forward pass."""

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        """The scalar objective.

        Args:
            losses: (k,) losses of the tasks that have a label in this step.
            present: (k,) int64, their positions among all tasks; absent tasks take no part.
        """
        raise NotImplementedError


class PerTaskWeighting(Weighting):
    """Needs a backward pass per task, of the parameters that count as shared.

    Args:
        heads: see `Heads`. scale: see `Scale`.
        shared: patterns of the names of the parameters that count as shared, such as `backbone.*`; None takes all that
            more than one task's loss reaches. The others are treated as task-specific parameters are (see `heads`).
    """

    def __init__(
        self, tasks: Mapping[str, Task], heads: Heads, scale: Scale = "paper", shared: Sequence[str] | None = None
    ) -> None:
        super().__init__(tasks)
        self.heads = heads
        self.scale = scale
        self.shared_patterns = shared

    def factor(self, weights: Tensor) -> Tensor | float:
        """What `scale` multiplies the combination of the gradients by, given its coefficients (k,)."""
        if self.scale == "paper":
            return 1.0
        total = weights.abs().sum()
        return ((1.0 if self.scale == "one" else len(weights)) / total).where(total > 0, 1.0)


class GradientWeighting(PerTaskWeighting):
    """Needs one backward pass per task; sees the gradients through their Gram matrix.

    Own parameters, where a method has them, get their gradient in `solve` (the engine multiplies it by the loss scale).

    Args:
        heads, scale, shared: see `PerTaskWeighting`. mode: see `Mode`.
        every: solve in every n-th optimizer step only and keep the coefficients in between. Such a step costs one
            backward pass. A task that the last solve did not see brings the next one forward.
    """

    needs: ClassVar[str] = "gradients"
    kept: Tensor
    kept_heads: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        heads: Heads,
        scale: Scale = "paper",
        every: int = 1,
        mode: Mode = "parameters",
        shared: Sequence[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.every = every
        self.mode = mode
        self.step = 0
        if every > 1:
            for name in ("kept", "kept_heads"):
                self.register_buffer(name, torch.full((len(tasks),), float("nan")))

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        self.step = step

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Coefficients (k,) of the per-task gradients.

        Args:
            gram: (k, k) float64 on the CPU, inner products of the shared parameters' gradients.
            losses, present: as in `LossWeighting.combine`.
        """
        raise NotImplementedError

    def clip(self, coefficients: Tensor, gram: Tensor) -> Tensor:
        """Coefficients (k,) of the shared parameters' gradients after a limit on their combination; by default none."""
        return coefficients

    def head_coefficients(self, coefficients: Tensor, gram: Tensor, losses: Tensor) -> Tensor:
        """Coefficients (k,) of the task-specific parameters' gradients, given those of the shared ones unclipped."""
        return coefficients if self.heads == "weighted" else torch.ones_like(coefficients)

    def coefficients(
        self, gram: Tensor, losses: Tensor, present: Tensor, slopes: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Those of the shared and of the task-specific parameters, float32; remembered where `every` says so.

        Args:
            slopes: (k,) what the coefficients are multiplied by to be those of the raw gradients.
        """
        solution = rescaled(self.solve(gram, losses, present), self.scale)
        heads = self.head_coefficients(solution, gram, losses).float() * slopes
        shared = self.clip(solution, gram).float() * slopes
        if self.every > 1:
            for buffer, values in ((self.kept, shared), (self.kept_heads, heads)):
                buffer.fill_(float("nan"))
                buffer[present.to(buffer.device)] = values.to(buffer.device)
        return shared, heads

    def known(self, present: Tensor) -> tuple[Tensor, Tensor] | None:
        """The coefficients of this step if it needs no solve; `present` and they are on the CPU."""
        if self.every == 1 or self.step % self.every == 0:
            return None
        shared, heads = to_host(torch.stack([self.kept, self.kept_heads]))[:, present]
        return None if shared.isnan().any() else (shared, heads)


class MatrixWeighting(PerTaskWeighting):
    """Needs the K×P matrix of per-task gradients itself, not only its Gram matrix; may keep K×P state.

    Buffers of K×P floats are named in `per_parameter`; the engine says how long they are (`attach`) and a checkpoint
    restores them.

    Args:
        heads, scale, shared: see `PerTaskWeighting`; the engine applies `scale`.
    """

    needs: ClassVar[str] = "gradients"
    per_parameter: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, tasks: Mapping[str, Task], heads: Heads, scale: Scale = "paper", shared: Sequence[str] | None = None
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        for name in self.per_parameter:
            self.register_buffer(name, None)

    def attach(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        """Called once with the shapes of the shared parameters in the order of the matrix' columns."""
        self.shapes = list(shapes)
        size = sum(shape.numel() for shape in self.shapes)
        for name in self.per_parameter:
            if getattr(self, name) is None:
                setattr(self, name, torch.zeros(len(self.task_names), size, device=device))

    def combine(self, grads_kP: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the shared parameters (P,), its coefficients (k,) and those of task-specific parameters (k,).

        Args:
            grads_kP: per-task gradients of the present tasks, float32, without loss scale; may be overwritten.
            losses: as in `LossWeighting.combine`, on the same device. present: likewise, on the CPU.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.per_parameter:
            if getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class CrossWeighting(PerTaskWeighting):
    """Needs per-task gradients of independent parts of the step's batch: products of two of them are unbiased.

    The step is cut into three parts of consecutive micro-batches with the shares `parts`. The first two give
    C = G_B G_Aᵀ (K×K), the third the gradient that is applied. The loop makes as many micro-batches as it takes.

    Args:
        heads, scale, shared: see `PerTaskWeighting`.
    """

    needs: ClassVar[str] = "gradients of three parts of the batch"
    log_losses: ClassVar[bool] = False
    parts: ClassVar[tuple[int, ...]] = (1, 1, 2)
    """Shares of the two parts that are compared, and of the third; four micro-batches divide most batches."""

    def update(self, cross: Tensor, present: Tensor) -> None:
        """Move the weights.

        Args:
            cross: (k, k) float64 on the CPU, ⟨g_i of part B, g_j of part A⟩; neither symmetric nor semi-definite.
            present: (k,) int64, the tasks that have a label in both parts; the state of others stays.
        """
        raise NotImplementedError

    def current(self, present: Tensor) -> Tensor:
        """Coefficients (k,) float32 of the third part's gradients, for the tasks of the step."""
        raise NotImplementedError
