"""Keeping the largest entries of a task vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.errors import Problem
from runner.merging.blocks import Block, Look
from runner.merging.coefficients import factor_at
from runner.merging.quantile import at_least, keep_count, kth_largest
from runner.merging.transforms.base import Transform
from runner.merging.transforms.shares import Share, check_share, share_of, shares


def thresholds(look: Look, density: Share, scope: str, at: Mapping[str, Share] | None = None) -> Any:
    """What |τ_t| must reach: one number per expert over the whole model, or per tensor: name → one per expert.

    Args:
        density: share that is kept, of all experts or of each.
        scope: "model" or "tensor".
        at: pattern → density of the tensors whose names fit, with scope "tensor".
    """
    experts = len(look.experts)
    even = shares(density, experts)
    if not at and min(even) >= 1.0:
        return None
    if scope == "model":

        def magnitudes(block: Block) -> list[Tensor]:
            return [block.delta(t).abs_() for t in range(len(block))]

        return kth_largest(look, magnitudes, [keep_count(share, look.total) for share in even])

    def of_tensor(block: Block) -> tuple[str, list[float]]:
        here = factor_at({**at, "*": even}, block.name, experts) if at else even
        return block.name, [top_threshold(block.delta(t).abs_(), share) for t, share in enumerate(here)]

    return dict(look.map(of_tensor, unit="tensor"))


def top_threshold(magnitudes: Tensor, density: float) -> float:
    """The smallest of the largest share of values."""
    flat = magnitudes.reshape(-1)
    if density >= 1.0:
        return 0.0
    return float(flat.kthvalue(flat.numel() - keep_count(density, flat.numel()) + 1).values)


def threshold_at(state: Any, name: str, index: int) -> float:
    """One expert's threshold for one tensor."""
    if state is None:
        return 0.0
    return float(state[name][index] if isinstance(state, dict) else state[index])


@dataclass(kw_only=True)
class Trim(Transform):
    """Keep the largest `density` of |τ|, of the whole model or of every tensor.

    Attributes:
        density: share that is kept, of every expert or one per expert.
        scope: what is ranked together.
        rescale: divide what is kept by the density.
    """

    density: Fraction | list[Fraction] = 0.2
    scope: Literal["model", "tensor"] = "tensor"
    rescale: bool = False

    def survey(self, look: Look) -> Any:
        return thresholds(look, self.density, self.scope)

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        kept = at_least(tau, threshold_at(state, block.name, index))
        density = share_of(self.density, index)
        return kept / density if self.rescale and density > 0 else kept

    def check(self, experts: int) -> list[Problem]:
        return check_share(self.density, experts, "merge.pre: density of Trim")


@dataclass(kw_only=True)
class Breadcrumbs(Transform):
    """Drop the largest and the smallest entries of every tensor.

    Davari & Belilovsky, "Model Breadcrumbs", ECCV 2024: per tensor, the top `largest` share (outliers) and the bottom
    `smallest` share of |τ| become 0. Counts are rounded down, so that small tensors are not emptied.

    Attributes:
        largest: γ, share of the largest that is dropped, of every expert or one per expert.
        smallest: β, share of the smallest that is dropped, likewise.
    """

    unit = "tensor"

    largest: Fraction | list[Fraction] = 0.01
    smallest: Fraction | list[Fraction] = 0.85

    def check(self, experts: int) -> list[Problem]:
        pairs = {"largest": self.largest, "smallest": self.smallest}
        return [p for key, given in pairs.items() for p in check_share(given, experts, f"merge.pre: {key}")]

    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        flat = tau.reshape(-1)
        count = flat.numel()
        top, bottom = (int(share_of(given, index) * count) for given in (self.largest, self.smallest))
        if top + bottom == 0:
            return tau
        order = flat.abs().argsort(stable=True)
        flat[order[:bottom]] = 0.0
        if top:
            flat[order[max(count - top, 0) :]] = 0.0
        return flat.view(tau.shape)


def rows_of(tau: Tensor) -> Tensor:
    """A matrix of rows: a vector is one row, filters are flattened."""
    return tau.reshape(1, -1) if tau.ndim < 2 else tau.reshape(tau.shape[0], -1)


def ranks_in_rows(magnitudes: Tensor) -> Tensor:
    """The rank of every entry in its row, 0 for the smallest, as float."""
    order = magnitudes.argsort(dim=1, stable=True)
    ranks = torch.empty_like(magnitudes)
    return ranks.scatter_(1, order, torch.arange(magnitudes.shape[1], dtype=ranks.dtype).expand_as(order).contiguous())
