"""Small integers in few bits: masks at one bit per weight, quantised task vectors at b bits."""

from __future__ import annotations

import torch
from torch import Tensor

RAW = 0
"""Instead of bits per weight: the codes of a tensor are bytes of their own kind, see `runner.merging.factors`."""

GROUP = 8
"""Codes are packed in groups of eight, so that every group fills whole bytes at any number of bits."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes."""
    return -(-count // GROUP) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,) of `bits` bits as bytes: eight codes make `bits` bytes, least significant bit first."""
    count = codes.numel()
    padded = torch.zeros(-(-count // GROUP) * GROUP, dtype=torch.int64)
    padded[:count] = codes.reshape(-1)
    shifts = torch.arange(bits)
    flat = ((padded.view(-1, GROUP, 1) >> shifts) & 1).view(-1, bits, 8)  # a group's bits, in eights
    return (flat << torch.arange(8)).sum(-1).to(torch.uint8).view(-1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes as int64."""
    flat = ((packed.view(-1, bits, 1).to(torch.int64) >> torch.arange(8)) & 1).view(-1, GROUP, bits)
    return (flat << torch.arange(bits)).sum(-1).view(-1)[:count]
