"""MT-AdamW: AdamW for training that draws one data set per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.config.kinds import Fraction, NonNegativeFloat, PositiveFloat
from runner.errors import Problem, UserError, suggest
from runner.training.optimizers import checked_betas, parameter_groups

OWN = "task_balanced"
"""Marks the groups of the model; later ones (a learnable weighting) are stepped by plain AdamW."""


def mt_adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-4,
    weight_decay: NonNegativeFloat = 0.01,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    omega: dict[str, PositiveFloat] | None = None,
    no_decay: list[Literal["bias", "norm", "embedding"]] | None = None,
    layer_decay: Fraction | None = None,
    rules: dict[str, dict[str, NonNegativeFloat]] | None = None,
) -> MTAdamW:
    """`MTAdamW`; other arguments: `runner.training.optimizers.parameter_groups`."""
    groups = parameter_groups(model, lr, weight_decay, no_decay, layer_decay, rules)
    return MTAdamW([group | {OWN: True} for group in groups], lr=lr, betas=checked_betas(betas), eps=eps, omega=omega)


class MTAdamW(torch.optim.Optimizer):
    """Task-balanced gradient normalisation (Uni-Perceiver v2: Li et al. 2023, arXiv 2211.09808, section 3.3).

    In a step that drew data set k, which a step does with probability s_k:

        g ← ω_k g / ‖g‖        over all parameters of the model; those that k does not reach have g = 0
        m ← β₁ m + (1 - β₁) g / s_k        n ← β₂ n + (1 - β₂) g² / s_k
        θ ← θ - lr (m̂ / (√n̂ + eps) + weight_decay θ),   m̂, n̂ corrected for their start at 0 as in AdamW

    so that in expectation every data set counts by its ω, however often it is drawn and however large its gradients
    are. Every parameter moves in every step. `draw` must be called before each `step`; without, s = ω = 1.

    Args:
        groups: of parameters, see `runner.training.optimizers`.
        omega: data set → ω, 1 for those that are not named.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        omega: Mapping[str, float] | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "betas": betas, "eps": eps, "step": 0, OWN: False}
        super().__init__(groups, defaults)
        self.omega = dict(omega or {})
        self._share, self._omega = 1.0, 1.0

    def check(self, shares: Mapping[str, float], drawn_at_once: int) -> None:
        """Refuse data that this optimizer is not made for.

        Args:
            shares: data set → how often a step draws it, on average.
            drawn_at_once: data sets that one step draws.

        Raises:
            UserError: all problems.
        """
        problems = [
            Problem(f"unknown data set 'optimizer.omega.{name}'", suggest(name, shares))
            for name in self.omega
            if name not in shares
        ]
        if drawn_at_once != 1:
            problems.append(
                Problem(
                    f"optimizer=mt_adamw normalises the gradient of one data set, but a step draws {drawn_at_once}",
                    "choose a sampler that draws one: sampler=proportional, sampler.draws=1",
                    "runner ls sampler",
                )
            )
        if problems:
            raise UserError(problems)

    def draw(self, dataset: str, share: float) -> None:
        """Say which data set the next step's gradient is of, and how often a step draws it."""
        self._share, self._omega = share, self.omega.get(dataset, 1.0)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        own = [g for g in self.param_groups if g[OWN]]
        grads = [p.grad for g in own for p in g["params"] if p.grad is not None]
        factor = None
        if grads:
            norm = torch.stack(torch._foreach_norm(grads)).double().norm()
            factor = torch.where(norm > 0, self._omega / norm, 0.0)  # a zero gradient stays one
        for group in self.param_groups:
            if group[OWN]:
                self._update(group, group["params"], factor, 1 / self._share)
            else:
                self._update(group, [p for p in group["params"] if p.grad is not None], None, 1.0)

    def _update(self, group: dict[str, Any], params: list[Tensor], factor: Tensor | None, weight: float) -> None:
        """One group: `factor` multiplies the gradient, `weight` what is added to the moments."""
        if not params:
            return
        group["step"] += 1
        (beta1, beta2), lr, step = group["betas"], group["lr"], group["step"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        firsts = [self.state[p]["exp_avg"] for p in params]
        seconds = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_mul_(seconds, beta2)
        reached = [(i, p.grad) for i, p in enumerate(params) if p.grad is not None]
        if reached:
            grads = [grad for _, grad in reached]
            if factor is not None:
                grads = list(torch._foreach_mul(grads, factor.to(grads[0].dtype)))
            torch._foreach_add_([firsts[i] for i, _ in reached], grads, alpha=(1 - beta1) * weight)
            torch._foreach_addcmul_([seconds[i] for i, _ in reached], grads, grads, value=(1 - beta2) * weight)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        below = torch._foreach_sqrt(seconds)
        torch._foreach_div_(below, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_addcdiv_(params, firsts, below, value=-lr / (1 - beta1**step))
