"""GradDrop: gradient sign dropout (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeInt
from runner.tasks.base import Task
from runner.weighting.base import MatrixWeighting
from runner.weighting.buffer import combination, in_columns
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
        seed = int(torch.randint(2**62, (), generator=self.random.generator).item())  # on the CPU
        draw = uniform_draws(seed, grads_kP.device)
        for piece in in_columns(grads_kP):  # few enough for a cache, and the first row makes room for the result
            piece[0] = pick_sign(piece, draw(piece.shape[1]), self.leak)
        ones = torch.ones_like(losses)
        return grads_kP[0], ones, ones


def uniform_draws(seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """Draws from [0, 1) where they are needed, n at a time; on a CPU by a generator of a third of torch's cost."""
    if device.type == "cpu":
        numbers = np.random.Generator(np.random.SFC64(seed))
        return lambda n: torch.from_numpy(numbers.random(n, dtype=np.float32))
    generator = torch.Generator(device).manual_seed(seed)
    return lambda n: torch.rand(n, device=device, generator=generator)


def pick_sign(grads_kP: Tensor, uniform_P: Tensor, leak: float = 0.0) -> Tensor:
    """The sum over tasks (P,) of the gradients whose sign was drawn, plus `leak` of the others.

    Args:
        grads_kP: per-task gradients.
        uniform_P: draws u from [0, 1), overwritten; the positive sign is kept where the positive purity
            ½(1 + Σg/Σ|g|) exceeds them.
    """
    ones = grads_kP.new_ones(len(grads_kP))
    total_P, size_P = combination(ones, grads_kP), combination(ones, grads_kP.abs())
    # ½(Σ|g| + Σg) is the sum of the positive ones, ½(Σ|g| - Σg) that of the others: the sign of 2u·Σ|g| - Σ|g| - Σg
    # tells which, and `copysign` costs a fraction of a comparison and a selection.
    rest_P = uniform_P.mul_(size_P).mul_(2).sub_(size_P).sub_(total_P)
    chosen_P = (total_P - torch.copysign(size_P, rest_P)).mul_(0.5)
    return chosen_P.lerp_(total_P, leak) if leak else chosen_P
