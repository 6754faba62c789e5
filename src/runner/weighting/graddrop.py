"""GradDrop: gradient sign dropout (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeInt
from runner.tasks.base import Task
from runner.weighting.base import MatrixWeighting
from runner.weighting.draws import GeneratorState


class GradDrop(MatrixWeighting):
    """Each coordinate keeps the gradients of one sign, drawn with the share of that sign; sum the results.

    Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020,
    algorithm 1. The paper masks the gradients of a shared activation; here, as in other libraries, the same rule masks
    those of the shared parameters.

    Args:
        leak: share of the masked gradients that passes anyway.
        seed: of the draws; None takes the run's; the generator's state is part of the checkpoint.
        scale: "paper" is the sum of the masked gradients.
        shared: see `MatrixWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        leak: Fraction = 0.0,
        seed: NonNegativeInt | None = None,
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, "unweighted", scale, shared)
        self.leak = leak
        self.random = GeneratorState(seed)

    def combine(self, grads_kP: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # P numbers drawn where the gradients are, by a generator that the saved one seeds.
        draw = torch.randint(2**62, (), generator=self.random.generator).item()
        uniform_P = torch.rand(
            grads_kP.shape[1],
            device=grads_kP.device,
            generator=torch.Generator(grads_kP.device).manual_seed(int(draw)),
        )
        ones = torch.ones_like(losses)
        return pick_sign(grads_kP, uniform_P, self.leak), ones, ones


def pick_sign(grads_kP: Tensor, uniform_P: Tensor, leak: float = 0.0) -> Tensor:
    """The sum over tasks (P,) of the gradients whose sign was drawn, plus `leak` of the others.

    Args:
        grads_kP: per-task gradients.
        uniform_P: draws from [0, 1); the positive sign is kept where the positive purity ½(1 + Σg/Σ|g|) exceeds them.
    """
    total_P = grads_kP.sum(0)
    positive_P = grads_kP.clamp_min(0).sum(0)  # Σ|g| = 2·positive − total, so the purity is positive/Σ|g|
    keep_P = positive_P > uniform_P * (2 * positive_P - total_P)
    chosen_P = torch.where(keep_P, positive_P, total_P - positive_P)
    return chosen_P.lerp_(total_P, leak)
