"""How per-task weights come from a shared model and stored codes: a fixed table, so that files name no code.

A merge that keeps codes per task writes the name of its decoder, never a class, into `merge.json`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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


DECODERS = {"masked": masked, "quantised": quantised}


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
