"""Which data sets an optimizer step draws from: `configs/sampler`.

A draw is a pure function of (step, seed), so that every process agrees on it and a resumed run continues it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import Problem, UserError

_SALT = 0x5A3F1E  # keeps the sampler's random numbers apart from those of permutations and augmentation


class Sampler(ABC):
    """Draws data sets; each drawn one contributes `trainer.batch_size` examples to the step.

    Attributes:
        sizes: data set → number of training examples, in the mixture's order.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        if not sizes:
            raise UserError("the mixture has no data set to draw from")
        empty = [name for name, size in sizes.items() if size < 1]
        if empty:
            raise UserError([Problem(f"data set '{name}' has no training examples") for name in empty])
        self.sizes = dict(sizes)

    @abstractmethod
    def draw(self, step: int, seed: int) -> list[str]:
        """The data sets of optimizer step `step` (from 0); one that stands there twice gives two groups."""

    def shares(self) -> dict[str, float]:
        """Data set → how often a step draws it, on average."""
        raise NotImplementedError(f"{type(self).__name__} does not say how often it draws each data set")

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps after which as many examples were drawn as all data sets have together."""
        return math.ceil(sum(self.sizes.values()) / (batch_size * len(self.draw(0, 0))))


class All(Sampler):
    """Every data set in every step."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__(sizes)

    def draw(self, step: int, seed: int) -> list[str]:
        return list(self.sizes)

    def shares(self) -> dict[str, float]:
        return dict.fromkeys(self.sizes, 1.0)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps for one pass over the largest data set; smaller ones start over."""
        return math.ceil(max(self.sizes.values()) / batch_size)


class _Weighted(Sampler):
    """Independent draws with fixed probabilities.

    Attributes:
        probabilities: data set → probability, summing to 1.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Sequence[float], draws: int) -> None:
        super().__init__(sizes)
        p = np.asarray(weights, dtype=np.float64)
        self.probabilities = dict(zip(self.sizes, (p / p.sum()).tolist(), strict=True))
        self.draws = draws

    def draw(self, step: int, seed: int) -> list[str]:
        rng = np.random.default_rng([seed, step, _SALT])
        names = list(self.sizes)
        picked = rng.choice(len(names), size=self.draws, p=list(self.probabilities.values()))
        return [names[i] for i in picked]

    def shares(self) -> dict[str, float]:
        return {name: p * self.draws for name, p in self.probabilities.items()}


class Proportional(_Weighted):
    """p ∝ n: on average every example is seen equally often."""

    def __init__(self, sizes: Mapping[str, int], *, draws: PositiveInt = 1) -> None:
        super().__init__(sizes, list(sizes.values()), draws)


class Uniform(_Weighted):
    """The same probability for every data set, whatever its size."""

    def __init__(self, sizes: Mapping[str, int], *, draws: PositiveInt = 1) -> None:
        super().__init__(sizes, [1.0] * len(sizes), draws)


class Temperature(_Weighted):
    """p ∝ min(n, cap)^(1/T): T=1 is proportional, T→∞ uniform (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2)."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        temperature: PositiveFloat = 2.0,
        cap: PositiveInt | None = None,
        draws: PositiveInt = 1,
    ) -> None:
        counted = np.array([min(n, cap) if cap else n for n in sizes.values()], dtype=np.float64)
        logs = np.log(np.maximum(counted, 1)) / temperature
        super().__init__(sizes, np.exp(logs - logs.max(initial=0)).tolist(), draws)


class RoundRobin(Sampler):
    """One data set after the other, in the mixture's order."""

    def __init__(self, sizes: Mapping[str, int], *, draws: PositiveInt = 1) -> None:
        super().__init__(sizes)
        self.draws = draws

    def draw(self, step: int, seed: int) -> list[str]:
        names = list(self.sizes)
        return [names[(step * self.draws + i) % len(names)] for i in range(self.draws)]

    def shares(self) -> dict[str, float]:
        return dict.fromkeys(self.sizes, self.draws / len(self.sizes))
