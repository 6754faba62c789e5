"""FORUM: weights and model descend the held-out losses under the constraint of the training loss (Ye et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.bilevel import LookAhead
from runner.weighting.own_adam import OwnAdam
from runner.weighting.solvers import Array, min_norm, simplex_minimum

_DIVERGED = 1e5  # a training loss above which the authors' code stops the inner steps


class FORUM(LossWeighting):
    """The gradient is Σ_k λ_k F̂_k + ν ∇_θ g: held-out gradients of unit length, and that of the training loss.

    Ye, Lin, Cao, Zhang and Tsang, "A First-Order Multi-Gradient Algorithm for Multi-Objective Bi-Level Optimization",
    ECAI 2024, algorithm 1. g(ξ, θ) = Σ_k softmax(ξ)_k L_k is the lower level, its value function is approximated by T
    gradient steps to θ_T, and q(ξ, θ) = g(ξ, θ) − g(ξ, θ_T) must fall:

        min_{λ ∈ simplex, ν ≥ 0} ½‖Σ_k λ_k F̂_k + ν ∇q‖² − ν ρ‖∇q‖²,   so  ν = max(ρ − ⟨∇q, Σ_k λ_k F̂_k⟩/‖∇q‖², 0)

    λ is averaged over steps with β = (epoch + 1)^(−beta_sigma). ∇q has the part ∇_θ g for the model, and for ξ the
    gradient of Σ_k softmax(ξ)_k (L_k(θ) − L_k(θ_T)), which ξ follows by Adam with the factor ν.

    The weights reported are those of the training losses, ν·softmax(ξ). ξ, λ and Adam's state are buffers.

    Args:
        rho: ρ, how much the training loss must fall.
        eta: η, learning rate of the inner steps.
        inner_step: T.
        lr: learning rate of ξ.
        beta_sigma: decay of the averaging of λ.
        held_out: "validation", or "train" for other training examples, as in the authors' code.
    """

    log_losses: ClassVar[bool] = False  # it looks ahead with the plain losses
    xi: Tensor
    average: Tensor

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        rho: PositiveFloat = 0.1,
        eta: PositiveFloat = 0.1,
        inner_step: PositiveInt = 5,
        lr: PositiveFloat = 1e-3,
        beta_sigma: NonNegativeFloat = 0.75,
        held_out: Literal["validation", "train"] = "validation",
    ) -> None:
        super().__init__(tasks)
        self.rho, self.eta, self.inner_step, self.beta_sigma = rho, eta, inner_step, beta_sigma
        self.look_ahead_on = held_out
        self.register_buffer("xi", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("average", torch.zeros(len(tasks), dtype=torch.float64))
        self.adam = OwnAdam(len(tasks), lr)
        self.nu = 1.0
        self.extra_P: Tensor | None = None

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return (self.nu * self.xi[present].softmax(0) * losses).sum()

    def extra_gradient(self) -> Tensor | None:
        return self.extra_P

    def look_ahead(self, world: LookAhead) -> None:
        self.nu, self.extra_P = 1.0, None  # a plain step where there is nothing to look at
        present, others = world.present("train"), world.present("held_out")
        if not len(present) or not len(others):
            return
        weights = self.xi[present].softmax(0)
        lower_P, losses = world.gradient("train", weights.float())
        there = self._descended(world, lower_P, weights)
        slope = (weights * (d := losses.double() - there.double())) - weights * (weights @ d)  # of q by ξ
        upper_kP = world.gradients("held_out")
        upper_kP = upper_kP / (upper_kP.norm(dim=1, keepdim=True) + 1e-8)
        square = float(slope.square().sum() + lower_P.double().square().sum())
        gram = (upper_kP @ upper_kP.T).double().cpu().numpy()
        inner = (upper_kP @ lower_P).double().cpu().numpy()
        if not (np.isfinite(gram).all() and np.isfinite(inner).all() and np.isfinite(square)) or square == 0:
            return
        found = torch.from_numpy(constrained_weights(gram, inner, square, self.rho)).to(self.average)
        beta = (world.epoch + 1.0) ** -self.beta_sigma
        self.average[others] += beta * (found - self.average[others])
        mixed = self.average[others]
        self.nu = max(self.rho - float(mixed @ torch.from_numpy(inner).to(mixed)) / square, 0.0)
        self.extra_P = mixed.float() @ upper_kP
        self.xi[present] += self.adam.change(self.nu * slope, present)

    def _descended(self, world: LookAhead, grad_P: Tensor, weights: Tensor) -> Tensor:
        """Training losses (k,) after the inner steps; those before a step after which they are not finite."""
        move_P = -self.eta * grad_P
        for _ in range(self.inner_step - 1):
            grad_P, losses = world.gradient("train", weights.float(), at=move_P)
            if not (weights @ losses.double() < _DIVERGED and grad_P.isfinite().all()):
                break
            move_P = move_P - self.eta * grad_P
        return world.losses("train", at=move_P)


def constrained_weights(gram: Array, inner: Array, square: float, rho: float) -> Array:
    """λ (K,) of the problem above.

    Where ν > 0 at the solution, Σ λ_k F̂_k + ν∇q = Σ λ_k F̂_k^⊥ + ρ∇q with the parts F̂^⊥ orthogonal to ∇q, and the
    objective is ½‖Σ λ_k F̂_k^⊥‖² + ρ Σ λ_k ⟨F̂_k, ∇q⟩ but for a constant. Otherwise λ is that of MGDA.

    Args:
        gram: ⟨F̂_j, F̂_k⟩ (K, K). inner: ⟨F̂_k, ∇q⟩ (K,). square: ‖∇q‖² > 0. rho: ρ.
    """
    if len(gram) == 1:
        return np.ones(1)
    orthogonal = gram - np.outer(inner, inner) / square
    linear = rho * inner
    unit = max(1.0, float(np.abs(linear).max()))

    def derivatives(w: Array) -> tuple[Array, Array]:
        return (orthogonal @ w + linear) / unit, orthogonal / unit

    weights = simplex_minimum(derivatives, np.ones(len(gram)))
    return weights if rho - weights @ inner / square >= 0 else min_norm(gram)
