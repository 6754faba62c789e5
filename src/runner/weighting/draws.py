"""Random draws that are the same on every rank and go on after a resume."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeneratorState(nn.Module):
    """A random generator whose state is part of `state_dict`: same draws on every rank and after a resume.

    Args:
        seed: None takes the run's, which torch was seeded with before anything was built.
    """

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    def permutation(self, n: int) -> list[int]:
        """A uniform random order of 0…n-1."""
        return torch.randperm(n, generator=self.generator).tolist()
