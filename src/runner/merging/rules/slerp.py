"""Interpolation on spheres: slerp, nuslerp, multislerp and the Karcher mean of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from runner.merging.base import Merge
from runner.merging.blocks import Block, Unit
from runner.merging.coefficients import factor_at, table

PARALLEL = 1.0 - 5e-4
"""Cosine beyond which two directions are taken for one, and interpolation is linear."""


@dataclass(kw_only=True)
class Slerp(Merge):
    """Spherical interpolation of two models, tensor by tensor.

    Shoemake 1985: with Ω the angle between θ_1 and θ_2 as vectors,
    θ = sin((1−t)Ω)/sin Ω · θ_1 + sin(tΩ)/sin Ω · θ_2; linear where they are nearly parallel.

    Attributes:
        t: 0 gives the first model, 1 the second.
        t_at: pattern → t for the tensors whose names fit; the first that fits counts.
    """

    unit: ClassVar[Unit] = "tensor"
    experts_min: ClassVar[int] = 2
    experts_max: ClassVar[int | None] = 2
    ignores: ClassVar[tuple[str, ...]] = ("weights", "normalize", "layers")
    identities: ClassVar[frozenset[str]] = frozenset({"identical", "permuted", "base"})

    t: Fraction = 0.5
    t_at: dict[str, float] | list[list[Any]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.t_at = table(self.t_at or {}, "merge.t_at")

    def merge(self, block: Block, state: Any) -> Tensor:
        t = self.t
        if self.t_at:
            t = factor_at({**self.t_at, "*": self.t}, block.name, 1)[0]
        return slerp(block.model(0), block.model(1), t)


SAME = 1.0 - 1e-13
"""Cosine of directions that coincide, in float64."""


def slerp(first: Tensor, second: Tensor, t: float, dim: int | None = None, parallel: float = PARALLEL) -> Tensor:
    """Between two tensors as vectors (`dim` None), or between their slices along a dimension.

    Args:
        first, second: of one shape.
        t: 0 gives the first, 1 the second.
        dim: along which a vector lies.
        parallel: |cosine| beyond which interpolation is linear.
    """
    if dim is None:
        return slerp(first.reshape(-1), second.reshape(-1), t, 0, parallel).view(first.shape)
    axis = dim if dim < 0 else dim + 1
    norms = torch.linalg.vector_norm(torch.stack([first, second]).double(), dim=axis, keepdim=True).clamp_min(1e-30)
    cosine = ((first.double() / norms[0]) * (second.double() / norms[1])).sum(dim, keepdim=True).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    flat = (cosine.abs() > parallel).float()
    sine = torch.sin(angle).clamp_min(1e-12)
    one = (torch.sin((1 - t) * angle) / sine).float() * (1 - flat) + (1 - t) * flat
    two = (torch.sin(t * angle) / sine).float() * (1 - flat) + t * flat
    mixed = one * first + two * second
    # Linear, and exact for equal models: around the first.
    return torch.where(flat.bool(), first + t * (second - first), mixed)


@dataclass(kw_only=True)
class Nuslerp(Merge):
    """Slerp with weights for two models, or for their task vectors where there is a base (after mergekit).

    t is the second weight's share; nothing is interpolated linearly unless directions coincide.

    Attributes:
        by: what is interpolated as a vector: a whole tensor, or every row or column of a matrix by itself.
    """

    unit: ClassVar[Unit] = "tensor"
    experts_min: ClassVar[int] = 2
    experts_max: ClassVar[int | None] = 2
    identities: ClassVar[frozenset[str]] = frozenset({"identical", "permuted", "base"})

    by: Literal["tensor", "rows", "columns"] = "tensor"

    def merge(self, block: Block, state: Any) -> Tensor:
        total = sum(block.weights)
        t = block.weights[1] / total if abs(total) > 1e-12 else 0.5
        dim = {"tensor": None, "rows": -1, "columns": 0}[self.by] if len(block.shape) > 1 else None
        if block.base is None:
            return slerp(block.model(0), block.model(1), t, dim, parallel=SAME)
        return block.base + slerp(block.delta(0), block.delta(1), t, dim, parallel=SAME)


@dataclass(kw_only=True)
class Karcher(Merge):
    """The Karcher (Riemannian) mean of the models' directions on the sphere, scaled to their mean norm.

    The minimiser of Σ w_t d(x, θ_t/‖θ_t‖)², found by averaging in the tangent space (log map) and walking back (exp
    map) until the step is shorter than `tolerance`; Karcher 1977, Afsari 2011.

    Attributes:
        steps: iterations at most.
        tolerance: of the step, in radians.
    """

    unit: ClassVar[Unit] = "tensor"
    identities: ClassVar[frozenset[str]] = frozenset({"one", "identical", "permuted", "base"})

    steps: PositiveInt = 50
    tolerance: PositiveFloat = 1e-6

    def merge(self, block: Block, state: Any) -> Tensor:
        return on_sphere(block, self.steps, self.tolerance)


@dataclass(kw_only=True)
class Multislerp(Merge):
    """Barycentric interpolation of several models on the sphere (after mergekit).

    Directions are averaged with their weights and the mean is scaled to the weighted mean of the norms. (Projecting
    everything onto the tangent space at that mean and averaging there, as mergekit describes it, adds nothing: the
    projections sum to zero.) `karcher` goes on from here to the true mean. With a base, task vectors are merged so.
    """

    unit: ClassVar[Unit] = "tensor"
    identities: ClassVar[frozenset[str]] = frozenset({"one", "identical", "permuted", "base"})

    def merge(self, block: Block, state: Any) -> Tensor:
        return on_sphere(block, 0, 0.0)


def on_sphere(block: Block, steps: int, tolerance: float) -> Tensor:
    """Weighted mean on the sphere of models, or of task vectors where there is a base, in float64."""
    if block.base is None:
        points = torch.stack([block.model(t).reshape(-1) for t in range(len(block))]).double()
    else:
        points = block.deltas().reshape(len(block), -1).double()
    weights = torch.tensor(block.weights, dtype=torch.float64)
    total = weights.sum()
    weights = weights / total if total.abs() > 1e-12 else torch.full_like(weights, 1 / len(block))
    norms = torch.linalg.vector_norm(points, dim=1)
    if bool((points == points[0]).all()):
        mean = points[0]
    else:
        units = points / norms.clamp_min(1e-30)[:, None]
        mean = sphere_mean(units, weights, steps, tolerance) * (weights @ norms)
    out = mean.float().view(block.models[0].shape)
    return out if block.base is None else block.base + out


def sphere_mean(units: Tensor, weights: Tensor, steps: int, tolerance: float) -> Tensor:
    """The weighted Karcher mean of unit vectors (T, n), from their normalised weighted sum on."""
    mean = weights @ units
    length = torch.linalg.vector_norm(mean)
    if length < 1e-12:  # opposite points: no mean is singled out
        return units[0]
    mean = mean / length
    for _ in range(steps):
        cosines = (units @ mean).clamp(-1.0, 1.0)
        angles = torch.arccos(cosines)
        tangents = units - cosines[:, None] * mean
        factors = torch.where(angles < 1e-8, 1.0, angles / torch.sin(angles).clamp_min(1e-12))
        step = (weights * factors) @ tangents
        size = float(torch.linalg.vector_norm(step))
        if size > 0:
            mean = mean * torch.cos(torch.tensor(size)) + step * (torch.sin(torch.tensor(size)) / size)
            mean = mean / torch.linalg.vector_norm(mean)
        if size <= tolerance:
            break
    return mean


@dataclass(kw_only=True)
class Nearswap(Merge):
    """Take the expert's weights where they are near the base's, the base's where they are far (after mergekit).

    θ = θ₀ + min(1, t/|τ|) τ: entries that moved by less than t are taken over, others move by t at most.

    Attributes:
        t: how near is near, in units of weights.
    """

    base_use: ClassVar[Any] = "required"
    experts_max: ClassVar[int | None] = 1
    identities: ClassVar[frozenset[str]] = frozenset({"one", "shift", "base"})
    neutral: ClassVar[dict[str, Any]] = {"t": 1e9}

    t: NonNegativeFloat = 1e-3

    def merge(self, block: Block, state: Any) -> Tensor:
        return block.origin + block.delta(0).mul_(block.weights[0]).clamp_(-self.t, self.t)
