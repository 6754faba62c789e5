"""PCGrad: gradient surgery (Yu et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import NonNegativeInt, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.draws import GeneratorState


class PCGrad(GradientWeighting):
    """Project each task's gradient off the original gradients it conflicts with, in random order; sum the results.

    Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1. Every projected gradient is a
    combination of the original ones, so the whole method runs on the K×K Gram matrix: with g'_i = Σ_j a_ij g_j,
    ⟨g'_i, g_j⟩ = (a_i GG)_j.

    Args:
        heads: the paper leaves task-specific parameters on their own plain loss.
        seed: of the random orders; None takes the run's. The generator's state is part of the checkpoint.
        scale: "paper" is the sum of the projected gradients.
        every, mode, shared: see `GradientWeighting`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        seed: NonNegativeInt | None = None,
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.random = GeneratorState(seed)

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        return project_conflicts(gram, [self.random.permutation(len(gram)) for _ in range(len(gram))]).sum(0)


def project_conflicts(gram: Tensor, orders: list[list[int]]) -> Tensor:
    """Coefficients a (K, K): row i expresses task i's projected gradient by the original ones.

    Args:
        gram: (K, K) inner products of the gradients.
        orders: for each task the order in which the others are visited (its own index is skipped).
    """
    matrix = gram.detach().to("cpu", torch.float64).numpy()
    squares, rows = matrix.diagonal(), np.arange(len(matrix))
    coefficients, products = np.eye(len(matrix)), matrix.copy()
    # Tasks do not see one another's projections, so all of them take a step of their own order at once.
    for others in np.array(orders).T:
        inner = products[rows, others]
        conflict = (others != rows) & (inner < 0) & (squares[others] > 0)
        factor = np.where(conflict, -inner / np.where(conflict, squares[others], 1.0), 0.0)
        coefficients[rows, others] += factor
        products += factor[:, None] * matrix[others]
    return torch.from_numpy(coefficients)
