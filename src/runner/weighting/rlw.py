"""Random loss weighting (Lin et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeInt
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.draws import GeneratorState

Distribution = Literal["normal", "uniform", "dirichlet", "bernoulli", "constrained_bernoulli"]
"""normal, uniform, dirichlet: softmax of standard normal, U(0, 1) or Dirichlet(1, …, 1) numbers. bernoulli: a fair
coin for each task, thrown again while all are 0. constrained_bernoulli: one task, chosen uniformly; its expected
gradient is that of equal weights over the mean."""


class RLW(LossWeighting):
    """total = Σ_k w_k L_k with weights drawn anew in every step.

    Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR 2022,
    algorithm 1 and the five distributions of its experiments, normalised as in the authors' code (LibMTL 1.1): a
    softmax of the first three, also of Dirichlet numbers, which lie on the simplex already; coins stay 0 or 1. Weights
    are drawn for the present tasks only.

    Args:
        distribution: of the weights; the paper's default is normal.
        scale: "paper": as drawn, with the sum 1, of coins the number of 1s; "mean": rescaled to the sum 1; "sum": to
            the number of present tasks.
        seed: of the draws; None takes the run's. The generator's state is part of the checkpoint, equal on all ranks.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        distribution: Literal["normal", "uniform", "dirichlet", "bernoulli", "constrained_bernoulli"] = "normal",
        scale: Literal["paper", "sum", "mean"] = "paper",
        seed: NonNegativeInt | None = None,
    ) -> None:
        super().__init__(tasks)
        self.distribution: Distribution = distribution
        self.scale = scale
        self.random = GeneratorState(seed)
        self.step_seed = self.random.generator.initial_seed()  # until the first step begins

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        # One number a step: how much a draw consumes may depend on the distribution and on who is present.
        self.step_seed = int(torch.randint(2**62, (), generator=self.random.generator))

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        weights = draw(self.distribution, len(losses), torch.Generator().manual_seed(self.step_seed))
        if self.scale != "paper":
            weights = weights / (weights.mean() if self.scale == "sum" else weights.sum())
        return (weights.to(losses.device, losses.dtype, non_blocking=True) * losses).sum()


def draw(distribution: Distribution, k: int, generator: torch.Generator) -> Tensor:
    """(k,) float64 random weights ≥ 0: see `Distribution`."""
    if k == 0:
        return torch.zeros(0, dtype=torch.float64)
    if distribution == "normal":
        return torch.softmax(torch.randn(k, dtype=torch.float64, generator=generator), 0)
    if distribution == "uniform":
        return torch.softmax(torch.rand(k, dtype=torch.float64, generator=generator), 0)
    if distribution == "dirichlet":  # Gamma(1) numbers, normalised
        gammas = torch.empty(k, dtype=torch.float64).exponential_(generator=generator)
        return torch.softmax(gammas / gammas.sum(), 0)
    if distribution == "constrained_bernoulli":
        chosen = torch.randint(k, (1,), generator=generator)
        return torch.zeros(k, dtype=torch.float64).index_fill_(0, chosen, 1.0)
    while True:
        coins = torch.randint(2, (k,), generator=generator).double()
        if coins.any():
            return coins
