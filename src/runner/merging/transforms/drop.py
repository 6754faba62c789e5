"""Dropping entries of a task vector at random, and scaling up the rest so that nothing changes on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeInt
from runner.errors import Problem, UserError
from runner.merging.blocks import Block
from runner.merging.draws import uniform
from runner.merging.transforms.base import Transform
from runner.merging.transforms.shares import check_share, share_of, shares
from runner.merging.transforms.trim import ranks_in_rows, rows_of


@dataclass(kw_only=True)
class Dare(Transform):
    """Drop entries with probability p and divide the others by 1 − p: E[DARE(τ)] = τ.

    Yu et al., "Language Models are Super Mario", ICML 2024.

    Attributes:
        rate: p, of every expert or one per expert.
        rescale: whether the others are divided.
        seed: of the draws; they depend on tensor, expert and place, not on the order of work.
    """

    rate: Fraction | list[Fraction] = 0.9
    rescale: bool = True
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if max([self.rate] if isinstance(self.rate, int | float) else self.rate, default=0.0) >= 1.0:
            raise UserError(f"Dare: rate={self.rate} drops everything", "take a rate below 1, such as 0.9")

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        rate = share_of(self.rate, index)
        if rate == 0.0:
            return tau
        tau.mul_(uniform(self.seed, block, index) >= rate)
        return tau.div_(1.0 - rate) if self.rescale else tau

    def check(self, experts: int) -> list[Problem]:
        return check_share(self.rate, experts, "merge.pre: rate of Dare")


@dataclass(kw_only=True)
class Magprune(Transform):
    """DELLA's drop: small entries are dropped more often than large ones, each divided by its own 1 − p_i.

    Deep et al., "DELLA-Merging", 2024, eq. 1-3: within every row p_i falls linearly with the rank of |τ_i| from
    p + ε/2 to p − ε/2, where p = 1 − density.

    Attributes:
        density: mean share that is kept, of every expert or one per expert.
        spread: ε, likewise.
        rescale: whether what is kept is divided by 1 − p_i.
        seed: of the draws.
    """

    unit = "tensor"

    density: Fraction | list[Fraction] = 0.5
    spread: Fraction | list[Fraction] = 0.2
    rescale: bool = True
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        count = max((len(given) for given in (self.density, self.spread) if isinstance(given, list)), default=1)
        if any(check_share(given, count, "") for given in (self.density, self.spread)):
            return  # said by `check`
        for density, spread in zip(shares(self.density, count), shares(self.spread, count), strict=True):
            low, high = 1.0 - density - spread / 2, 1.0 - density + spread / 2
            if density < 1.0 and (low < 0.0 or high >= 1.0):
                raise UserError(
                    f"Magprune: density={density} with spread={spread} gives rates from {low:.2f} to {high:.2f}",
                    "they must lie in [0, 1): reduce merge.pre.….spread",
                )

    def check(self, experts: int) -> list[Problem]:
        pairs = {"density": self.density, "spread": self.spread}
        return [p for key, given in pairs.items() for p in check_share(given, experts, f"merge.pre: {key} of Magprune")]

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        density, spread = share_of(self.density, index), share_of(self.spread, index)
        if density >= 1.0:
            return tau
        rows = rows_of(tau)
        ranks = ranks_in_rows(rows.abs())
        count = rows.shape[1]
        position = ranks / (count - 1) if count > 1 else torch.full_like(ranks, 0.5)
        drop = 1.0 - density + spread * (0.5 - position)
        rows = rows * (uniform(self.seed, block, index).reshape(rows.shape) >= drop)
        return (rows / (1.0 - drop) if self.rescale else rows).view(tau.shape)
