"""Merging in the space of singular vectors: TSV-M (Gargiulo et al. 2025), Iso-C and Iso-CTS (Marczak et al. 2025)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Unit
from runner.merging.linalg import is_matrix, orthogonalise, thin_svd


@dataclass(kw_only=True)
class MatrixMerge(TaskVectorMerge):
    """A rule for matrices; everything else (biases, norms) is the mean of the task vectors.

    Attributes:
        kernels: the filters of convolutions: their "mean", as published, or a "matrix" of outputs × everything else.
    """

    unit: ClassVar[Unit] = "tensor"
    copies: ClassVar[int] = 6

    kernels: Literal["mean", "matrix"] = "mean"

    @abstractmethod
    def combine_matrix(self, block: Block) -> Tensor:
        """The merged task vector of a matrix (m, n)."""

    def combine(self, block: Block, state: Any) -> Tensor:
        first = block.models[0]
        if is_matrix(first):
            return self.combine_matrix(block)
        if self.kernels == "matrix" and first.ndim > 2 and is_matrix(first.flatten(1)):
            return self.combine_matrix(as_matrix(block)).view(first.shape)
        return summed(block).div_(len(block))


def as_matrix(block: Block) -> Block:
    """A block of filters (out, in, …) as one of matrices (out, in · …); `pre` sees the filters."""
    shape = block.models[0].shape

    def flattened(change: Callable[[Tensor, Block, int], Tensor]) -> Callable[[Tensor, Block, int], Tensor]:
        return lambda tau, _, index: change(tau.view(shape), block, index).flatten(1)

    return replace(
        block,
        base=None if block.base is None else block.base.flatten(1),
        models=[model.flatten(1) for model in block.models],
        changes=[flattened(change) for change in block.changes],
    )


def summed(block: Block) -> Tensor:
    """Σ_t w_t τ_t."""
    total = block.delta(0).mul_(block.weights[0])
    for t in range(1, len(block)):
        total.add_(block.delta(t), alpha=block.weights[t])
    return total


@dataclass(kw_only=True)
class TsvM(MatrixMerge):
    """Task singular vectors: low rank per task, interference between tasks whitened away.

    Gargiulo et al., "Task Singular Vectors", CVPR 2025, algorithm 1: of every τ_t the largest 1/T of the singular
    triplets is kept; the left vectors of all tasks are put side by side and orthogonalised (P Qᵀ of their SVD), the
    right ones likewise; Δ = scale · U⊥ Σ V⊥ᵀ.
    """

    identities: ClassVar[frozenset[str]] = frozenset({"one", "permuted", "shift", "base"})

    def combine_matrix(self, block: Block) -> Tensor:
        rank = min(block.models[0].shape)
        return whitened_sum([leading(block.delta(t), rank // len(block)) for t in range(len(block))], block)


Triplets = tuple[Tensor, Tensor, Tensor]
"""U (m, r), S (r,), Vᵀ (r, n)."""


def leading(tau: Tensor, rank: int) -> Triplets:
    """The largest singular triplets, one at least; without directions that hold nothing."""
    u, s, vt = thin_svd(tau)
    own = min(max(1, rank), int((s > s[0] * 1e-6).sum()))  # empty directions would be whitened against others
    return u[:, :own], s[:own], vt[:own]


def whitened_sum(found: Sequence[Triplets], block: Block) -> Tensor:
    """U⊥ Σ V⊥ᵀ of all tasks' triplets, singular values times the coefficients."""
    if not sum(len(s) for _, s, _ in found):
        return torch.zeros_like(block.models[0])
    spectrum = torch.cat([s * w for (_, s, _), w in zip(found, block.weights, strict=True)])
    left = orthogonalise(torch.cat([u for u, _, _ in found], 1))
    right = orthogonalise(torch.cat([vt for _, _, vt in found], 0))
    return (left * spectrum) @ right


@dataclass(kw_only=True)
class IsoC(MatrixMerge):
    """The sum of task vectors with an even spectrum.

    Marczak et al., "No Task Left Behind", ICML 2025, eq. 6: with Σ_t τ_t = U S Vᵀ, Δ = scale · mean(S) · U Vᵀ.
    """

    identities: ClassVar[frozenset[str]] = frozenset({"permuted", "shift", "base"})

    def combine_matrix(self, block: Block) -> Tensor:
        u, s, vt = thin_svd(summed(block))
        return s.mean() * ((u * (s > 0)) @ vt)


@dataclass(kw_only=True)
class IsoCts(MatrixMerge):
    """Iso-C with room for directions of single tasks.

    Marczak et al., ICML 2025, algorithm 2: the top `common` share of the singular vectors of the sum is kept; what
    each task has outside their (left) span gives its own top directions, an equal number per task; all are
    orthogonalised, and the spectrum is their mean.

    Attributes:
        common: share of the rank that the common directions take.
    """

    identities: ClassVar[frozenset[str]] = frozenset({"permuted", "shift", "base"})

    common: Fraction = 0.8

    def combine_matrix(self, block: Block) -> Tensor:
        u, s, vt = thin_svd(summed(block))
        rank = len(s)
        own = (rank - round(self.common * rank)) // len(block)
        kept = rank - own * len(block)
        us, ss, vs = [u[:, :kept]], [s[:kept]], [vt[:kept]]
        for t in range(len(block) if own else 0):
            tau = block.delta(t)
            tau = tau - u[:, :kept] @ (u[:, :kept].T @ tau)
            a, b, c = thin_svd(tau)
            us.append(a[:, :own])
            ss.append(b[:own])
            vs.append(c[:own])
        spectrum = torch.cat(ss)
        left, right = orthogonalise(torch.cat(us, 1)), orthogonalise(torch.cat(vs, 0))
        return spectrum.mean() * (left @ right)
