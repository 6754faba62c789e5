"""Merging LoRA adapters by themselves: adapters in, an adapter out.

Merged onto their base (`base=DIR`), adapters are experts like any other and every strategy works on ΔW. These work on
the factors; each expert counts with its own scaling α/r, and the result has scaling 1.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import Problem, UserError
from runner.merging.adapters import PREFIX, FactorSource
from runner.merging.base import Arranged, Arrangement
from runner.merging.coefficients import factor_at
from runner.merging.quantile import at_least
from runner.merging.rules.ties import elect
from runner.merging.sources import Models, TensorInfo
from runner.merging.transforms.trim import top_threshold

Pair = tuple[Tensor, Tensor]


@dataclass(kw_only=True)
class LoraMerge(Arrangement):
    """Base of the rules on factors."""

    adapters: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    @abstractmethod
    def join(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        """A (r, in) and B (out, r) of the result from those of the experts, whose weights contain their scaling."""

    def rank(self, ranks: Sequence[int]) -> int:
        """The rank of the result from those of the experts."""
        return ranks[0]

    same_rank: ClassVar[bool] = False

    def arrange(self, models: Models) -> Joined:
        sources = [s for s in models.experts.values() if isinstance(s, FactorSource)]
        return Joined(self, sources)


class Joined(Arranged):
    """The merged adapter; a module's factors are made when the first of them is read.

    Raises:
        UserError: the adapters do not change the same modules in the same shapes, or ranks differ where they must not.
    """

    def __init__(self, rule: LoraMerge, sources: Sequence[FactorSource]) -> None:
        self.label, self.folder, self.aliases = "result", sources[0].folder, {}
        self.rule, self.sources = rule, sources
        count = len(sources)
        self.weights = [w / (sum(rule.weights) if rule.normalize else 1.0) for w in rule.weights or []]
        self.weights = self.weights or [1.0 / count] * count
        self.files = [f for s in sources for f in getattr(s.adapter, "files", ())]
        self._infos: dict[str, TensorInfo] = {}
        self._module: dict[str, tuple[str, int]] = {}
        self._made: tuple[str, Pair] | None = None
        self._lock = threading.Lock()
        problems: list[Problem] = []
        ranks: dict[str, int] = {}
        for module, first in sources[0].factors.items():
            lacking = [s.label for s in sources if module not in s.factors]
            if lacking:
                problems.append(Problem(f"{', '.join(lacking)}: the adapter does not change '{module}'"))
                continue
            shapes = [(s.tensors()[s.factors[module].a].shape, s.tensors()[s.factors[module].b].shape) for s in sources]
            if len({(a[1:], b[:1]) for a, b in shapes}) > 1 or any(len(a) != 2 for a, _ in shapes):
                problems.append(Problem(f"'{module}' is of different size in the adapters, or a convolution"))
                continue
            own = [a[0] for a, _ in shapes]
            if rule.same_rank and len(set(own)) > 1:
                what = f"'{module}' has ranks {own}: this rule adds factors and needs the same rank"
                problems.append(Problem(what, "merge=lora_cat and lora_svd take any ranks"))
                continue
            ranks[module] = rule.rank(own)
            dtype = sources[0].tensors()[first.a].dtype
            self._infos[first.a] = TensorInfo((ranks[module], shapes[0][0][1]), dtype)
            self._infos[first.b] = TensorInfo((shapes[0][1][0], ranks[module]), dtype)
            self._module |= {first.a: (module, 0), first.b: (module, 1)}
        for source in sources[1:]:
            extra = [m for m in source.factors if m not in sources[0].factors]
            if extra:
                problems.append(Problem(f"{sources[0].label}: the adapter does not change '{extra[0]}'"))
        if problems:
            raise UserError(problems)
        rank = max(ranks.values())
        pattern = {module.removeprefix(PREFIX): r for module, r in ranks.items() if r != rank}
        self.changes: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": pattern, "use_rslora": False}
        self.changes |= {"alpha_pattern": dict(pattern)}

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        module, which = self._module[name]
        with self._lock:
            if self._made is None or self._made[0] != module:
                self._made = (module, self._join(module))
            made = self._made[1][which]
        return made.reshape(-1)[start:stop]

    def _join(self, module: str) -> Pair:
        found = [source.pair(module) for source in self.sources]
        count = len(found)
        factors = factor_at(dict(self.rule.layers), f"{module}.weight", count)
        scaled = [w * f * scaling for w, f, (_, _, scaling) in zip(self.weights, factors, found, strict=True)]
        return self.rule.join([(a, b) for a, b, _ in found], scaled)


@dataclass(kw_only=True)
class LoraCat(LoraMerge):
    """Factors side by side: B_cat A_cat = Σ_t w_t ΔW_t exactly, at the sum of the ranks."""

    def rank(self, ranks: Sequence[int]) -> int:
        return sum(ranks)

    def join(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        return (
            torch.cat([w * a for (a, _), w in zip(pairs, weights, strict=True)], 0),
            torch.cat([b for _, b in pairs], 1),
        )


@dataclass(kw_only=True)
class LoraLinear(LoraMerge):
    """(Σ √w B)(Σ √w A): cheap, and far from the weighted sum of ΔW, since factors of different experts multiply."""

    same_rank: ClassVar[bool] = True

    def join(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        roots = [_root(w) for w in weights]
        a = sum(r * a for (a, _), (r, _) in zip(pairs, roots, strict=True))
        b = sum(r * sign * b for (_, b), (r, sign) in zip(pairs, roots, strict=True))
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        return a, b


def _root(weight: float) -> tuple[float, float]:
    """√|w| and the sign of w, which goes to one factor only."""
    return abs(weight) ** 0.5, -1.0 if weight < 0 else 1.0


@dataclass(kw_only=True)
class LoraSvd(LoraMerge):
    """The best approximation of Σ_t w_t ΔW_t of a given rank; exact where the rank is that of the sum.

    Attributes:
        size: rank of the result; null: that of the first adapter.
    """

    size: PositiveInt | None = None

    def rank(self, ranks: Sequence[int]) -> int:
        return min(self.size or ranks[0], sum(ranks))

    def join(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        a = torch.cat([w * a for (a, _), w in zip(pairs, weights, strict=True)], 0).double()
        b = torch.cat([b for _, b in pairs], 1).double()
        left, upper = torch.linalg.qr(b)  # (out, R), (R, R): the SVD happens in R dimensions, the sum of the ranks
        right, lower = torch.linalg.qr(a.T)
        u, s, vt = torch.linalg.svd(upper @ lower.T)
        keep = self.rank([p[0].shape[0] for p in pairs])
        root = s[:keep].sqrt()
        down, up = (root[:, None] * (vt[:keep] @ right.T)).float(), ((left @ u[:, :keep]) * root).float()
        lacking = keep - down.shape[0]  # layers narrower than the rank
        return torch.nn.functional.pad(down, (0, 0, 0, lacking)), torch.nn.functional.pad(up, (0, lacking))


@dataclass(kw_only=True)
class LoraTies(LoraMerge):
    """TIES (disjoint mean) on the A factors and on the B factors by themselves, each weighted by √w.

    Attributes:
        density: share of every factor that is kept.
    """

    same_rank: ClassVar[bool] = True

    density: Fraction = 0.5

    def join(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        roots = [_root(w) for w in weights]
        a = self._elect([r * a for (a, _), (r, _) in zip(pairs, roots, strict=True)])
        b = self._elect([r * sign * b for (_, b), (r, sign) in zip(pairs, roots, strict=True)])
        return a, b

    def _elect(self, factors: Sequence[Tensor]) -> Tensor:
        trimmed = (at_least(f, top_threshold(f.abs(), self.density)) for f in factors)
        return elect(trimmed, [1.0] * len(factors), "mean")
