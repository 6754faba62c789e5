"""Model Stock (Jang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Look


@dataclass(kw_only=True)
class ModelStock(TaskVectorMerge):
    """The average of a few models, pulled back to the base as far as their task vectors disagree.

    Jang et al., "Model Stock", ECCV 2024, eq. 4: per tensor, with θ the mean angle between task vectors,
    t = T cosθ / (1 + (T−1) cosθ), and the result is t · average + (1−t) · θ₀. t is kept in [0, 1]: at cosθ ≤ 0 the
    formula leaves it (and has a pole at −1/(T−1)), and the base is the best guess.
    """

    reads: ClassVar[int] = 2
    averages: ClassVar[bool] = True

    def survey(self, look: Look) -> Any:
        return dict(look.map(ratio, unit="tensor"))

    def combine(self, block: Block, state: Any) -> Tensor:
        total = block.delta(0).mul_(block.weights[0])
        for t in range(1, len(block)):
            total.add_(block.delta(t), alpha=block.weights[t])
        return total.mul_(state[block.name])


def ratio(block: Block) -> tuple[str, float]:
    """The ratio t of one tensor, with its name."""
    count = len(block)
    if count == 1:
        return block.name, 1.0
    rows = block.deltas().reshape(count, -1)
    gram = rows.double() @ rows.double().T if rows.numel() < 1 << 20 else (rows @ rows.T).double()
    norms = gram.diagonal().sqrt().clamp_min(1e-30)
    cosines = gram / norms[:, None] / norms
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    if not bool(gram.diagonal().gt(0).any()):
        return block.name, 1.0
    mean = min(max(mean, 0.0), 1.0)
    return block.name, count * mean / (1 + (count - 1) * mean)


@dataclass(kw_only=True)
class MetaGPT(TaskVectorMerge):
    """Task arithmetic with coefficients from norms alone.

    Zhou et al., "MetaGPT", EMNLP 2024, eq. 12: λ_t = ‖τ_t‖² / Σ_k ‖τ_k‖² over the whole model; they sum to 1.
    """

    reads: ClassVar[int] = 2

    def survey(self, look: Look) -> Any:
        squares = torch.tensor(look.map(squared_norms), dtype=torch.float64).sum(0)
        total = float(squares.sum())
        return [float(s) / total if total > 0 else 1.0 / len(squares) for s in squares]

    def combine(self, block: Block, state: Any) -> Tensor:
        total = torch.zeros_like(block.models[0])
        for t, share in enumerate(state):
            total.add_(block.delta(t), alpha=share * block.weights[t])
        return total


def squared_norms(block: Block) -> list[float]:
    """‖τ_t‖² of every expert."""
    return [float(torch.linalg.vector_norm(block.delta(t), dtype=torch.float64)) ** 2 for t in range(len(block))]
