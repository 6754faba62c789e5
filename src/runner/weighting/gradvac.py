"""GradVac: gradient vaccine (Wang et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.draws import GeneratorState
from runner.weighting.solvers import Array
from runner.weighting.step import to_host


class GradVac(GradientWeighting):
    """Turn each task's gradient towards the others until their cosines are what they usually are; sum the results.

    Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
    Models", ICLR 2021, algorithm 1, with all shared parameters as one group. The usual cosine of a pair is an
    exponential moving average, part of the checkpoint like the generator of the random orders.

    Args:
        beta: weight of a new cosine in its average.
        heads: task-specific parameters on their plain loss, or with the coefficient too.
        seed: of the random orders; None takes the run's.
        scale: "paper" is the sum of the turned gradients.
        every, mode, shared: see `GradientWeighting`.
    """

    target: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        beta: Fraction = 0.01,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        seed: NonNegativeInt | None = None,
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.beta = beta
        self.random = GeneratorState(seed)
        self.register_buffer("target", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        pairs = (present[:, None].to(self.target.device), present.to(self.target.device))
        orders = [self.random.permutation(len(gram)) for _ in range(len(gram))]
        rows, target = vaccinate(gram.numpy(), orders, to_host(self.target[pairs]).numpy(), self.beta)
        self.target[pairs] = torch.from_numpy(target).to(self.target)
        return torch.from_numpy(rows.sum(0))


def vaccinate(gram: Array, orders: list[list[int]], target: Array, beta: float) -> tuple[Array, Array]:
    """Coefficients (K, K), row i of task i's new gradient by the original ones, and the new averages (K, K).

    Args:
        gram: (K, K) float64.
        orders: for each task the order in which the others are visited (its own index is skipped).
        target: averages of the cosines so far; row i belongs to task i.
        beta: weight of the new cosines.
    """
    size = len(gram)
    rows = np.arange(size)
    norms = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    coefficients, products, target = np.eye(size), gram.copy(), target.copy()
    # Tasks do not see one another's new gradients, so all of them take a step of their own order at once.
    for others in np.array(orders).T:
        own = np.sqrt(np.maximum((products * coefficients).sum(1), 0.0))
        length = own * norms[others]
        usable = (others != rows) & (length > 0)
        cosine = np.clip(products[rows, others] / np.where(usable, length, 1.0), -1.0, 1.0)
        goal = target[rows, others]
        sine, goal_sine = np.sqrt(1 - cosine**2), np.sqrt(np.maximum(1 - goal**2, 1e-12))
        factor = own * (goal * sine - cosine * goal_sine) / (np.where(usable, norms[others], 1.0) * goal_sine)
        factor = np.where(usable & (cosine < goal), factor, 0.0)
        coefficients[rows, others] += factor
        products += factor[:, None] * gram[others]
        target[rows, others] = np.where(usable, (1 - beta) * goal + beta * cosine, goal)
    return coefficients, target
