"""Dropping entries of a task vector at random, and scaling up the rest so that nothing changes on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeInt
from runner.errors import UserError
from runner.merging.blocks import Block
from runner.merging.draws import uniform
from runner.merging.transforms.base import Transform
from runner.merging.transforms.trim import ranks_in_rows, rows_of


@dataclass(kw_only=True)
class Dare(Transform):
    """Drop entries with probability p and divide the others by 1 − p: E[DARE(τ)] = τ.

    Yu et al., "Language Models are Super Mario", ICML 2024.

    Attributes:
        rate: p.
        rescale: whether the others are divided.
        seed: of the draws; they depend on tensor, expert and place, not on the order of work.
    """

    rate: Fraction = 0.9
    rescale: bool = True
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.rate >= 1.0:
            raise UserError(f"Dare: rate={self.rate} drops everything", "take a rate below 1, such as 0.9")

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        if self.rate == 0.0:
            return tau
        tau.mul_(uniform(self.seed, block, index) >= self.rate)
        return tau.div_(1.0 - self.rate) if self.rescale else tau


@dataclass(kw_only=True)
class Magprune(Transform):
    """DELLA's drop: small entries are dropped more often than large ones, each divided by its own 1 − p_i.

    Deep et al., "DELLA-Merging", 2024, eq. 1-3: within every row p_i falls linearly with the rank of |τ_i| from
    p + ε/2 to p − ε/2, where p = 1 − density.

    Attributes:
        density: mean share that is kept.
        spread: ε.
        rescale: whether what is kept is divided by 1 − p_i.
        seed: of the draws.
    """

    unit = "tensor"

    density: Fraction = 0.5
    spread: Fraction = 0.2
    rescale: bool = True
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        low, high = 1.0 - self.density - self.spread / 2, 1.0 - self.density + self.spread / 2
        if self.density < 1.0 and (low < 0.0 or high >= 1.0):
            raise UserError(
                f"Magprune: density={self.density} with spread={self.spread} gives rates from {low:.2f} to {high:.2f}",
                "they must lie in [0, 1): reduce merge.pre.….spread",
            )

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        if self.density >= 1.0:
            return tau
        rows = rows_of(tau)
        ranks = ranks_in_rows(rows.abs())
        count = rows.shape[1]
        position = ranks / (count - 1) if count > 1 else torch.full_like(ranks, 0.5)
        drop = 1.0 - self.density + self.spread * (0.5 - position)
        rows = rows * (uniform(self.seed, block, index).reshape(rows.shape) >= drop)
        return (rows / (1.0 - drop) if self.rescale else rows).view(tau.shape)
