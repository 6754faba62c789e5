"""How per-task weights come from a shared model and stored codes: a fixed table, so that files name no code.

A merge that keeps codes per task writes the name of its decoder, never a class, into `merge.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.merging.factors import rebuild
from runner.merging.packing import RAW, unpack

COMMON = "(common)"
"""A part that every task reads, beside its own."""


def read_by(part: str, expert: str) -> bool:
    """Whether a task needs a part."""
    return part in (expert, COMMON)


def masked(
    expert: str, base: Tensor, shared: Tensor, codes: Mapping[str, Tensor], scalars: Mapping[str, list[float]]
) -> Tensor:
    """θ_t = θ₀ + r_t · m_t ⊙ (θ − θ₀): a bit per weight and a factor per tensor."""
    return base + scalars[expert][0] * codes[expert] * (shared - base)


def quantised(
    expert: str, base: Tensor, shared: Tensor, codes: Mapping[str, Tensor], scalars: Mapping[str, list[float]]
) -> Tensor:
    """θ_t = θ₀ + Σ_parts (low + step · code): integer codes with an offset and a step per tensor."""
    out = base.clone()
    for part, values in codes.items():
        low, step = scalars[part]
        out += low + step * values
    return out


def added(
    expert: str, base: Tensor, shared: Tensor, codes: Mapping[str, Tensor], scalars: Mapping[str, list[float]]
) -> Tensor:
    """θ_t = θ₀ + what the codes decode to: task vectors stored as factors."""
    return base + codes[expert]


DECODERS = {"masked": masked, "quantised": quantised, "added": added}


def unpacked(packed: Tensor, bits: int, shape: Sequence[int], start: int, stop: int) -> Tensor:
    """The codes of elements [start, stop) of a tensor.

    Args:
        packed: bytes: of the elements from `start` on, or of the whole tensor where `bits` is `RAW`.
        bits: per weight, or `RAW`.
        shape: of the tensor.
        start: a multiple of `packing.GROUP`.
        stop: exclusive.
    """
    if bits == RAW:
        return rebuild(packed, shape).reshape(-1)[start:stop]
    return unpack(packed, bits, stop - start)


def decode(
    kind: str,
    expert: str,
    base: Tensor,
    shared: Tensor,
    codes: Mapping[str, Tensor],
    scalars: Mapping[str, list[float]],
) -> Tensor:
    """The weights of one task, flat.

    Args:
        kind: one of `DECODERS`.
        expert: whose task.
        base: θ₀, flat.
        shared: the merged tensor, flat.
        codes: part → its codes (n,).
        scalars: part → its numbers for this tensor.
    """
    return DECODERS[kind](expert, base, shared, codes, scalars)
