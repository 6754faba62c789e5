"""Running a strategy over the tensors of several models: cutting them into pieces, looking ahead, visiting by threads.

Streaming and in-memory merges are this engine with another source and another sink, so they give the same numbers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from runner.errors import Problem, RunFailed, UserError
from runner.merging.base import Merge, TaskVectorMerge
from runner.merging.blocks import GRAIN, Block, Split, Unit
from runner.merging.sources import Models, Source
from runner.merging.transforms.base import Transform

R = TypeVar("R")

RUN = 1024
"""Elements that a look at a share of the model reads in one place."""


@dataclass(frozen=True)
class Piece:
    """The elements [start, stop) of a tensor."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    whole: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def cut(name: str, shape: tuple[int, ...], numel: int, size: int | None) -> list[Piece]:
    """A tensor in pieces of `size` elements (rounded up to whole grains); None keeps it whole."""
    if size is None:
        return [Piece(name, shape, 0, numel, True)]
    step = max(1, -(-size // GRAIN)) * GRAIN
    return [Piece(name, shape, at, min(at + step, numel), False) for at in range(0, numel, step)]


class Engine:
    """Looks at models and merges them piece by piece.

    Args:
        merge: the strategy.
        models: what is merged.
        names: the tensors that are merged, in order; every model has them in the same shape.
        threads: that visit pieces.
        piece: elements of a slice, about; small enough that a piece of every model stays in the cache.
        budget: bytes of float32 pieces in flight at most; one that is larger runs alone.
    """

    def __init__(
        self,
        merge: Merge,
        models: Models,
        names: Sequence[str],
        *,
        threads: int = 1,
        piece: int = 2 * GRAIN,
        budget: int = 768 * 2**20,
    ) -> None:
        self.strategy, self.models, self.names = merge, models, tuple(names)
        self.experts = models.names
        first = next(iter(models.experts.values()))
        self.infos = {name: first.tensors()[name] for name in names}
        self.total = sum(info.numel for info in self.infos.values())
        self.threads, self.size = threads, piece
        self.states: list[Any] = []
        """What each entry of `pre` found, then what the rule found."""
        self._gate = Gate(budget)
        self._transforms: list[Transform] = [t for t in merge.pre if isinstance(t, Transform)]
        post = [t for t in merge.post if isinstance(t, Transform)] if isinstance(merge, TaskVectorMerge) else []
        whole = any(t.unit == "tensor" for t in (*self._transforms, *post))
        self.unit: Unit = "tensor" if whole else merge.unit
        self.watch = not merge.propagates or bool(self._transforms) or bool(post)
        """Whether every input is checked for NaN and infinity; else they show in the result."""

    # ---- looking ----------------------------------------------------------------------------------------------------

    def prepare(self, states: list[Any] | None = None) -> list[Any]:
        """Let `pre` and the rule look at the models, each seeing what those before it make; or take what they found."""
        if states is not None:
            self.states = list(states)
            return self.states
        self.states = []
        for transform in self._transforms:
            self.states.append(transform.survey(self))
        self.states.append(self.strategy.survey(self))
        return self.states

    @property
    def state(self) -> Any:
        """What the rule found."""
        return self.states[-1]

    def map(self, function: Callable[[Block], R], *, unit: Unit = "element", share: float = 1.0) -> list[R]:
        """See `runner.merging.blocks.Look.map`."""
        known = len(self.states)
        if any(t.unit == "tensor" for t in self._transforms[:known]):
            unit, share = "tensor", 1.0
        pieces = list(self.pieces(unit) if share >= 1.0 or unit != "element" else self._sample(share))
        return self.visit(pieces, lambda piece: function(self.block(piece)), copies=self.strategy.copies)

    def _sample(self, share: float) -> Iterator[Piece]:
        """Runs of elements at fixed distances along the concatenation of all tensors."""
        stride, position, following = max(RUN, round(RUN / share)), 0, 0
        for name, info in self.infos.items():
            while following < position + info.numel:
                start = max(0, following - position) // 8 * 8
                yield Piece(name, info.shape, start, min(start + RUN, info.numel), False)
                following += stride
            position += info.numel

    # ---- merging ----------------------------------------------------------------------------------------------------

    def pieces(self, unit: Unit | None = None) -> Iterator[Piece]:
        """All pieces, in order."""
        size = self.size if (unit or self.unit) == "element" else None
        for name, info in self.infos.items():
            yield from cut(name, info.shape, info.numel, size)

    def block(self, piece: Piece, watch: bool = False) -> Block:
        """A piece of every model, in float32; with `watch`, NaN and infinity are refused."""
        changes = [
            partial(_changed, transform, state)
            for transform, state in zip(self._transforms, self.states, strict=False)  # while they look: those before
        ]
        base = None if self.models.base is None else load(self.models.base, piece)
        models = [load(source, piece) for source in self.models.experts.values()]
        if watch and not all(finite(t) for t in (*models, *([] if base is None else [base]))):
            self.blame(piece)
        return Block(
            piece.name,
            piece.shape,
            piece.start,
            base,
            models,
            self.experts,
            self.strategy.weights_at(piece.name, len(self.experts)),
            changes,
        )

    def merged(self, piece: Piece) -> Tensor | Split:
        """The merged piece."""
        return self.strategy.merge(self.block(piece, self.watch), self.state)

    def blame(self, piece: Piece) -> NoReturn:
        """Say which model holds NaN or infinity in a piece; or that the strategy made them itself."""
        sources = [*([self.models.base] if self.models.base else []), *self.models.experts.values()]
        problems = []
        for source in sources:
            values = load(source, piece)
            bad = int(values.numel() - torch.isfinite(values).sum())
            if bad:
                what = f"{source.label}: '{piece.name}' holds {bad} values that are NaN or infinite"
                problems.append(Problem(what, f"leave it out: 'exclude=[{piece.name}]', or repair the model"))
        if problems:
            raise UserError(problems)
        raise RunFailed(
            f"'{piece.name}': the merge gave NaN or infinite values from finite ones",
            "coefficients too large for the stored type? see merge.scale, merge.weights and dtype",
        )

    def visit(self, pieces: Sequence[Piece], function: Callable[[Piece], R], *, copies: int) -> list[R]:
        """`function` of every piece by threads, results in order; pieces in flight stay within the budget."""
        cost = 4 * (len(self.experts) + copies)
        if self.threads == 1:
            return [function(piece) for piece in pieces]

        def guarded(piece: Piece) -> R:
            try:
                return function(piece)
            finally:
                self._gate.leave(piece.numel * cost)

        pool = ThreadPoolExecutor(self.threads)
        futures: list[Future[R]] = []
        try:
            for piece in pieces:
                self._gate.enter(piece.numel * cost)
                if any(f.done() and f.exception() for f in futures[-4 * self.threads :]):
                    self._gate.leave(piece.numel * cost)
                    break
                futures.append(pool.submit(guarded, piece))
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also when a signal stops the merge: what is queued must not be worked off first
            pool.shutdown(wait=True, cancel_futures=True)
        return [future.result() for future in futures if not future.cancelled()]


def _changed(transform: Transform, state: Any, tau: Tensor, block: Block, index: int) -> Tensor:
    return transform.apply(tau, block, index, state)


def load(source: Source, piece: Piece) -> Tensor:
    """A piece of one model in float32: a view where it is stored so."""
    flat = source.read(piece.name, piece.start, piece.stop).to(torch.float32)
    return flat.view(piece.shape) if piece.whole else flat


def finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity; one pass."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


class Gate:
    """Lets work in while its bytes fit a budget; what is larger than the budget goes alone."""

    def __init__(self, budget: int) -> None:
        self._budget, self._used, self._free = budget, 0, threading.Condition()

    def enter(self, size: int) -> None:
        """Wait for room."""
        with self._free:
            self._free.wait_for(lambda: self._used == 0 or self._used + size <= self._budget)
            self._used += size

    def leave(self, size: int) -> None:
        """Give it back."""
        with self._free:
            self._used -= size
            self._free.notify_all()
