"""MoCo: multi-objective gradient correction (Fernando et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat
from runner.tasks.base import Task
from runner.weighting.step import to_host
from runner.weighting.tracked import TrackedWeighting


class MoCo(TrackedWeighting):
    """MGDA on tracked gradients, with weights that move slowly: the bias of stochastic gradients in MGDA disappears.

    Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Stochastic Approach",
    ICLR 2023, algorithm 1: y_k ← y_k − β_t (y_k − g_k), λ ← Π(λ − γ_t (YYᵀ + ρ·1) λ), g = Yᵀλ. Y (K×P floats) and λ are
    part of the checkpoint. Tasks absent from a step keep theirs; the others share what they had of the simplex.

    Args:
        beta: step of the tracking; β_t = beta/t^beta_sigma. beta_sigma: its decay.
        gamma: step of the weights; γ_t = gamma/t^gamma_sigma. gamma_sigma: its decay.
        rho: regularises the weights towards equal ones.
        normalize: "none" as in the algorithm; "loss" tracks L_k·g_k/‖g_k‖ as in the authors' experiments.
        projection: onto the simplex, by Euclidean distance ("simplex", the paper) or "softmax" (their experiments).
        heads: task-specific parameters on their plain loss, or weighted too.
        scale: "paper" is weights that sum to 1.
        shared: see `PerTaskWeighting`.
    """

    weights: Tensor
    steps: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        beta: PositiveFloat = 0.5,
        beta_sigma: NonNegativeFloat = 0.5,
        gamma: PositiveFloat = 0.1,
        gamma_sigma: NonNegativeFloat = 0.5,
        rho: NonNegativeFloat = 0.0,
        normalize: Literal["none", "loss"] = "none",
        projection: Literal["simplex", "softmax"] = "simplex",
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, shared)
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma = gamma, gamma_sigma
        self.rho = rho
        self.normalize = normalize
        self.projection = projection
        self.by_length = normalize == "loss"
        self.register_buffer("weights", torch.full((len(tasks),), 1.0 / len(tasks)))
        self.register_buffer("steps", torch.zeros(()))

    def track(self, losses: Tensor, present: Tensor, norms: Tensor | None) -> tuple[Tensor, Tensor]:
        self.steps += 1
        rates = (self.beta / self.steps**self.beta_sigma).expand(len(losses))
        return rates, torch.ones_like(losses) if norms is None else losses / norms.clamp_min(1e-8)

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gamma = self.gamma / to_host(self.steps).to(gram) ** self.gamma_sigma
        had = to_host(self.weights).to(gram)[present]
        share = had.sum()
        weights = had / share if share > 0 else torch.full_like(had, 1 / len(had))
        project = project_simplex if self.projection == "simplex" else (lambda v: v.softmax(0))
        weights = project(weights - gamma * (gram @ weights + self.rho * weights))
        self.weights[present.to(self.weights.device)] = (weights * share).to(self.weights)
        return weights, weights, weights if self.heads == "weighted" else torch.ones_like(weights)


def project_simplex(vector: Tensor) -> Tensor:
    """The nearest point of the simplex (Held, Wolfe and Crowder 1974)."""
    vector = vector - vector.max()  # which changes nothing but the precision
    ordered = vector.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(vector) + 1, device=vector.device)
    support = (ordered > excess).sum() - 1
    return (vector - excess[support]).clamp_min(0)
