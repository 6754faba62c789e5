"""Tensors as bytes of a low-rank factorisation: U and V in half precision, singular values in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_HEAD = 4
"""Bytes of the rank in front; rank 0: the tensor itself follows in float32."""


def stored_rank(shape: Sequence[int], rank: int) -> int:
    """The rank at which a tensor is stored: 0, whole, for what is no matrix, at full rank, and where it is smaller."""
    if len(shape) != 2 or rank >= min(shape) or min(shape) < 2:
        return 0
    rank = max(1, rank)
    return rank if rank * (2 * sum(shape) + 4) < 4 * math.prod(shape) else 0


def factor_bytes(shape: Sequence[int], rank: int) -> int:
    """Bytes of a tensor stored at a rank, see `stored_rank`."""
    kept = stored_rank(shape, rank)
    return _HEAD + (kept * (2 * sum(shape) + 4) if kept else 4 * math.prod(shape))


def pack_factors(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> Tensor:
    """U (m, r), S (r,) and Vᵀ (r, n) as bytes; directions that lack up to `rank` are zeros."""
    lack = rank - len(s)
    parts = [torch.nn.functional.pad(s, (0, lack)), torch.nn.functional.pad(u, (0, lack)).half()]
    parts.append(torch.nn.functional.pad(vt, (0, 0, 0, lack)).half())
    return torch.cat([_head(rank), *(_bytes(p) for p in parts)])


def pack_whole(tensor: Tensor) -> Tensor:
    """A tensor as bytes, exactly."""
    return torch.cat([_head(0), _bytes(tensor.float())])


def rebuild(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """What `pack_factors` or `pack_whole` stored, in float32."""
    rank = int(packed[:_HEAD].clone().view(torch.int32))
    body = packed[_HEAD:]
    if rank == 0:
        return body.clone().view(torch.float32).view(tuple(shape))
    rows, columns = shape
    s, u, vt = body[: 4 * rank], body[4 * rank : 4 * rank + 2 * rank * rows], body[4 * rank + 2 * rank * rows :]
    left = u.clone().view(torch.float16).view(rows, rank).float()
    right = vt.clone().view(torch.float16).view(rank, columns).float()
    return (left * s.clone().view(torch.float32)) @ right


def _head(rank: int) -> Tensor:
    return torch.tensor([rank], dtype=torch.int32).view(torch.uint8)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
