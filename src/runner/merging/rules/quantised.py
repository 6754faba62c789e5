"""Task vectors stored in a few bits: TVQ and RTVQ (Kim et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.errors import Problem
from runner.merging.base import TaskVectorMerge
from runner.merging.blocks import Block, Look, Split
from runner.merging.decoders import COMMON
from runner.merging.packing import pack


@dataclass(kw_only=True)
class Tvq(TaskVectorMerge):
    """Quantise every task vector uniformly, store the codes, merge what they decode to.

    Kim et al., "Task Vector Quantization for Memory-Efficient Model Merging", 2025: per tensor
    code = round((τ − min) / step), step = (max − min) / (2^bits − 1). Task vectors have a far narrower range than
    weights, so few bits do. Each task's own weights can be restored from its codes.

    Attributes:
        bits: per weight and task.
        scale: λ of the merged model (plain task arithmetic on what was decoded).
    """

    decoder: ClassVar[str | None] = "quantised"
    reads: ClassVar[int] = 2
    identities: ClassVar[frozenset[str]] = frozenset({"permuted", "shift", "base"})

    bits: PositiveInt = 4
    scale: float = 0.3

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        found = super().check(experts, has_base)
        if max(self._widths()) > 16:
            found.append(Problem("codes of more than 16 bits save nothing over the weights", "take 2 to 8"))
        return found

    def _widths(self) -> tuple[int, ...]:
        return (self.bits,)

    def survey(self, look: Look) -> Any:
        return ranges(look, lambda block, t: block.delta(t), len(look.experts), self.bits)

    def combine(self, block: Block, state: Any) -> Tensor:
        return self._split(block, state)[0]

    def _split(self, block: Block, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = torch.zeros_like(block.models[0]), {}
        for t, expert in enumerate(block.experts):
            low, step = state[block.name][t]
            codes = encode(block.delta(t), low, step, self.bits)
            total.add_(low + step * codes, alpha=block.weights[t])
            parts[expert] = pack(codes.reshape(-1), self.bits)
        return total, parts

    def merge(self, block: Block, state: Any) -> Split:
        total, parts = self._split(block, state)
        for transform in self.post:
            total = transform.apply(total, block, -1, None)
        return Split(torch.add(block.origin, total, alpha=self.scale), parts)

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        return dict.fromkeys(experts, self.bits)

    def scalars(self, name: str, experts: tuple[str, ...], state: Any) -> dict[str, list[float]]:
        return dict(zip(experts, state[name], strict=True))


@dataclass(kw_only=True)
class Rtvq(Tvq):
    """Residual quantisation: the mean task vector in more bits once, what each task adds to it in fewer.

    Kim et al., 2025, section 4.2: τ̄ is quantised first and residuals are taken from its decoded value, so that its
    error is corrected. Costs bits + common_bits/T per weight and task.

    Attributes:
        common_bits: of the mean task vector.
    """

    reads: ClassVar[int] = 3

    bits: PositiveInt = 2
    common_bits: PositiveInt = 3

    def _widths(self) -> tuple[int, ...]:
        return (self.bits, self.common_bits)

    def survey(self, look: Look) -> Any:
        common = ranges(look, lambda block, _: mean_delta(block), 1, self.common_bits)

        def residual(block: Block, t: int) -> Tensor:
            low, step = common[block.name][0]
            mean = low + step * encode(mean_delta(block), low, step, self.common_bits)
            return block.delta(t) - mean

        own = ranges(look, residual, len(look.experts), self.bits)
        return {name: [common[name][0], *own[name]] for name in own}

    def _split(self, block: Block, state: Any) -> tuple[Tensor, dict[str, Tensor]]:
        (low, step), *rest = state[block.name]
        codes = encode(mean_delta(block), low, step, self.common_bits)
        parts = {COMMON: pack(codes.reshape(-1), self.common_bits)}
        mean = low + step * codes
        total = torch.zeros_like(mean)
        for t, expert in enumerate(block.experts):
            low, step = rest[t]
            codes = encode(block.delta(t) - mean, low, step, self.bits)
            total.add_(mean + (low + step * codes), alpha=block.weights[t])
            parts[expert] = pack(codes.reshape(-1), self.bits)
        return total, parts

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        return {COMMON: self.common_bits, **dict.fromkeys(experts, self.bits)}

    def scalars(self, name: str, experts: tuple[str, ...], state: Any) -> dict[str, list[float]]:
        return dict(zip((COMMON, *experts), state[name], strict=True))


def mean_delta(block: Block) -> Tensor:
    """τ̄: the plain mean of the task vectors."""
    total = block.delta(0)
    for t in range(1, len(block)):
        total.add_(block.delta(t))
    return total.div_(len(block))


def encode(values: Tensor, low: float, step: float, bits: int) -> Tensor:
    """Integer codes as floats."""
    if step <= 0:
        return torch.zeros_like(values)
    return ((values - low) / step).round_().clamp_(0, 2**bits - 1)


def ranges(look: Look, value: Any, columns: int, bits: int) -> dict[str, list[list[float]]]:
    """Tensor → (low, step) of every column; `value(block, column)` gives what is quantised."""

    def extremes(block: Block) -> tuple[str, list[tuple[float, float]]]:
        found = []
        for column in range(columns):
            low, high = value(block, column).aminmax()
            found.append((float(low), float(high)))
        return block.name, found

    together: dict[str, list[tuple[float, float]]] = {}
    for name, found in look.map(extremes):
        before = together.get(name, found)
        together[name] = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(before, found, strict=True)]
    return {n: [[low, (high - low) / (2**bits - 1)] for low, high in found] for n, found in together.items()}
