"""Random numbers that depend on seed, tensor, expert and place alone: not on order, threads, or how a tensor is cut."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from runner.merging.blocks import GRAIN, Block


def uniform(seed: int, block: Block, index: int) -> Tensor:
    """One number in [0, 1) per element of a block, shaped like it; the same for the same element whatever the block."""
    count = block.models[0].numel()
    first, last = block.start // GRAIN, -(-(block.start + count) // GRAIN)
    grains = [_grain(seed, block.name, index, number) for number in range(first, last)]
    values = torch.cat(grains) if len(grains) != 1 else grains[0]
    offset = block.start - first * GRAIN
    return values[offset : offset + count].view(block.models[0].shape)


def _grain(seed: int, name: str, index: int, number: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{name}/{index}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(GRAIN, generator=generator)
