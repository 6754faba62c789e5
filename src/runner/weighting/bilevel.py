"""What bilevel methods may ask before a step."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Examples = Literal["train", "held_out"]


class LookAhead(Protocol):
    """What a bilevel method may ask before a step; exact over micro-batches and processes, and without a trace.

    "train" are the examples of the coming step, "held_out" as many others. Gradients are vectors (P,) over all
    trainable parameters in their order, float32.
    """

    lr: float
    """Learning rate of the model in the coming step."""
    epoch: int
    """Epochs that have ended."""

    def present(self, examples: Examples) -> Tensor:
        """(k,) int64, the positions of the tasks that have a label among them."""

    def losses(self, examples: Examples, at: Tensor | None = None) -> Tensor:
        """Losses (k,) of those tasks, with the parameters moved by `at` (P,)."""

    def gradients(self, examples: Examples, at: Tensor | None = None) -> Tensor:
        """Their gradients (k, P): k backward passes."""

    def gradient(self, examples: Examples, weights: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the weighted sum of those losses, weights (k,), and the losses: one backward pass."""
