"""TSV-C: task vectors stored as their leading singular triplets, restored per task (Gargiulo et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from runner.config.kinds import Fraction
from runner.merging.blocks import Block, Split
from runner.merging.factors import factor_bytes, pack_factors, pack_whole, stored_rank
from runner.merging.linalg import is_matrix
from runner.merging.packing import RAW
from runner.merging.rules.spectral import TsvM, leading, summed, whitened_sum


@dataclass(kw_only=True)
class TsvC(TsvM):
    """Keep of every task's matrices the leading singular triplets, and merge what is kept as TSV-M does.

    Gargiulo et al., "Task Singular Vectors", CVPR 2025, section 4.1: θ̂_t = θ₀ + U_t Σ_t V_tᵀ at 1/T of the rank, where
    the task is known at inference. What is no matrix is stored whole, and so are matrices that factors would not make
    smaller. Half precision for U and V is ours: their entries are all below 1.

    Attributes:
        keep: share of the rank that each task keeps; null: 1/T.
    """

    decoder: ClassVar[str | None] = "added"

    keep: Fraction | None = None

    def rank(self, shape: Sequence[int], count: int) -> int:
        """Triplets per task of a matrix."""
        return max(1, round(min(shape) * (1 / count if self.keep is None else self.keep)))

    def combine(self, block: Block, state: object) -> Tensor:
        return self._split(block)[0]

    def _split(self, block: Block) -> tuple[Tensor, dict[str, Tensor]]:
        if not is_matrix(block.models[0]):
            parts = {expert: pack_whole(block.delta(t)) for t, expert in enumerate(block.experts)}
            return summed(block).div_(len(block)), parts
        rank = self.rank(block.shape, len(block))
        kept = stored_rank(block.shape, rank)
        found, parts = [], {}
        for t, expert in enumerate(block.experts):
            tau = block.delta(t)
            found.append(leading(tau, rank))
            parts[expert] = pack_factors(*found[-1], kept) if kept else pack_whole(tau)
        return whitened_sum(found, block), parts

    def merge(self, block: Block, state: object) -> Split:
        total, parts = self._split(block)
        for transform in self.post:
            total = transform.apply(total, block, -1, None)
        return Split(block.origin + self.scale * total, parts)

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(experts, RAW)

    def code_bytes(self, part: str, shape: Sequence[int], experts: tuple[str, ...]) -> int:
        return factor_bytes(shape, self.rank(shape, len(experts))) if len(shape) == 2 else factor_bytes(shape, 0)
