"""Training batches as an endless, resumable stream, and evaluation batches.

Everything is a function of (seed, data set, position): the order of a data set in epoch e is a permutation made from
(seed, name, e), the augmentation of an example from (seed, name, e, index). So the state is one number per data set,
and neither workers nor ranks nor accumulation nor prefetching can change what a step sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict
from zlib import crc32

import numpy as np
import torch

from runner.errors import Problem, UserError, suggest
from runner.mixtures.collate import collate
from runner.mixtures.dense import DenseDataset
from runner.mixtures.dense_batch import DenseBatch
from runner.mixtures.stored import StoredGroup, collate_stored
from runner.mixtures.workers import Loader, open_loader
from runner.types import Batch, Group

if TYPE_CHECKING:
    from runner.mixtures.base import Dataset
    from runner.mixtures.samplers import Sampler

_ORDER = 0x0DDE12  # keeps permutations apart from augmentation, whose seeds have four words


class StreamState(TypedDict):
    """Where a stream stands: optimizer steps consumed, and examples consumed per data set (an endless count)."""

    step: int
    cursors: dict[str, int]


@dataclass(frozen=True)
class _Draw:
    """What one group is made of: (epoch, index) pairs of one data set; epoch None means no augmentation."""

    dataset: str
    examples: list[tuple[int | None, int]]


def order(seed: int, name: str, epoch: int, size: int) -> np.ndarray:
    """The order in which epoch `epoch` visits the `size` examples of data set `name`."""
    return np.random.default_rng([seed, crc32(name.encode()), epoch, 0, _ORDER]).permutation(size)


def augmentation_rng(seed: int, name: str, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one example in one epoch."""
    return np.random.default_rng([seed, crc32(name.encode()), epoch, index])


def steps_per_epoch(sizes: Mapping[str, int], sampler: Sampler, batch_size: int) -> int:
    """Optimizer steps of one epoch; the sampler says what an epoch is (`all`: one pass over the largest data set).

    Args:
        sizes: data set → number of training examples; must be those the sampler was made with.
        sampler: as configured. batch_size: examples per drawn data set and step.
    """
    if dict(sizes) != sampler.sizes:
        raise ValueError(f"the sampler was made for {sampler.sizes}, not for {dict(sizes)}")
    return sampler.steps_per_epoch(batch_size)


class _Order:
    """Positions of the endless sequence of one data set; keeps the permutation of the current epoch."""

    def __init__(self, seed: int, name: str, size: int) -> None:
        self.seed, self.name, self.size = seed, name, size
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """(epoch, index) of `count` examples from position `start`; may cross several epochs."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            epoch, offset = divmod(start + len(taken), self.size)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, order(self.seed, self.name, epoch, self.size)
            part = self._permutation[offset : offset + count - len(taken)]
            taken += [(epoch, index) for index in part.tolist()]
        return taken


class Stream:
    """Endless optimizer steps: iterating yields (this rank's micro-batches, the state after the step).

    A step draws data sets from `sampler` and takes the next `batch_size` examples of each. They are cut into
    accumulation × world_size chunks; chunk m × world_size + rank is this rank's part of micro-batch m. Joining the
    chunks in order therefore gives the same examples for every number of processes and micro-batches.

    Args:
        datasets: data set → data set, of the training split.
        sampler: decides which data sets a step draws.
        batch_size: examples per drawn data set and optimizer step, over all processes and micro-batches.
        accumulation: micro-batches per step. rank, world_size: this process among the others.
        seed: decides order and augmentation.
        num_workers: processes that load; 0 loads in this one.
        pad_token_id: of the tokenizer, for texts.
        pin_memory: for copies to a GPU that do not block.
        start: a state that this stream gave earlier; None starts at the beginning.
        device: of the model. Data sets that hand over what is stored are made into examples there, and their groups lie
            there; others come as they are loaded.

    Raises:
        UserError: an empty data set, a batch size that cannot be divided, or a state of other data sets.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        sampler: Sampler,
        *,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        pad_token_id: int | None = None,
        pin_memory: bool = False,
        start: StreamState | None = None,
        device: torch.device | None = None,
    ) -> None:
        parts = accumulation * world_size
        problems = [Problem(f"data set '{n}' has no training examples") for n, d in datasets.items() if len(d) == 0]
        if batch_size % parts:
            larger = math.ceil(batch_size / parts) * parts
            problems.append(
                Problem(
                    f"trainer.batch_size={batch_size} cannot be divided into trainer.accumulation={accumulation} "
                    f"micro-batches on launch.num_processes={world_size} processes",
                    f"batch_size counts the examples of a whole optimizer step: trainer.batch_size={larger}",
                )
            )
        cursors = dict(start["cursors"]) if start else dict.fromkeys(datasets, 0)
        for name in sorted(cursors.keys() ^ datasets.keys()):
            problems.append(
                Problem(f"the saved position is not of these data sets: '{name}'", suggest(name, {*cursors, *datasets}))
            )
        if problems:
            raise UserError(problems)
        self._datasets, self._sampler = dict(datasets), sampler
        self._batch_size, self._accumulation = batch_size, accumulation
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._num_workers, self._pad_token_id, self._pin_memory = num_workers, pad_token_id, pin_memory
        self._device = device
        self._state: StreamState = {"step": int(start["step"]) if start else 0, "cursors": cursors}
        self._loader: Loader | None = None

    @property
    def state(self) -> StreamState:
        """The state after the steps that were handed out so far."""
        return {"step": self._state["step"], "cursors": dict(self._state["cursors"])}

    def __iter__(self) -> Iterator[tuple[list[Batch], dict[str, Any]]]:
        self.close()
        self._loader = open_loader(
            _MakeBatch(self._datasets, self._seed, self._pad_token_id, self._device),
            self._plan(),
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
        )
        return self._steps(self._loader)

    def _steps(self, loader: Loader) -> Iterator[tuple[list[Batch], dict[str, Any]]]:
        while True:
            micro_batches = [finished(next(loader), self._device) for _ in range(self._accumulation)]
            # The plan runs ahead of what was handed out (workers prefetch); this count does not.
            names = self._sampler.draw(self._state["step"], self._seed)
            self._state["step"] += 1
            for name in names:
                self._state["cursors"][name] += self._batch_size
            yield micro_batches, dict(self.state)

    def _plan(self) -> Iterator[list[_Draw]]:
        """This rank's micro-batches from the current state on, as work for `_MakeBatch`."""
        orders = {name: _Order(self._seed, name, len(dataset)) for name, dataset in self._datasets.items()}
        step, cursors = self._state["step"], dict(self._state["cursors"])
        size = self._batch_size // (self._accumulation * self._world_size)
        while True:
            whole = []
            for name in self._sampler.draw(step, self._seed):
                whole.append((name, orders[name].take(cursors[name], self._batch_size)))
                cursors[name] += self._batch_size
            for m in range(self._accumulation):
                begin = (m * self._world_size + self._rank) * size
                yield [_Draw(name, examples[begin : begin + size]) for name, examples in whole]
            step += 1

    def close(self) -> None:
        """End the worker processes; iterating again continues after the last step that was handed out."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


def eval_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pad_token_id: int | None = None,
    device: torch.device | None = None,
) -> Iterator[Group]:
    """Groups that together hold every example of `dataset` once over all ranks, in a fixed order, not augmented.

    `device` as in `Stream`.

    Rank r has examples r, r + world_size, …; the last group of a rank may be smaller, and a rank may have none.

    Raises:
        UserError: the data set is empty, or an example is not what the configuration says.
    """
    if len(dataset) == 0:
        raise UserError(f"data set '{dataset.name}' has no examples to evaluate on")
    indices = range(rank, len(dataset), world_size)
    plan = [
        [_Draw(dataset.name, [(None, index) for index in indices[begin : begin + batch_size]])]
        for begin in range(0, len(indices), batch_size)
    ]
    make = _MakeBatch({dataset.name: dataset}, 0, pad_token_id, device)
    loader = open_loader(make, plan, num_workers=min(num_workers, len(plan)), pin_memory=False)
    try:
        for batch in loader:
            yield from finished(batch, device)
    finally:
        loader.close()


def finished(batch: Iterable[Group | StoredGroup], device: torch.device | None) -> Batch:
    """A batch as the model reads it: groups that come as they are stored are made into examples on `device`."""
    return [g.finish(device or torch.device("cpu")) if isinstance(g, StoredGroup) else g for g in batch]


class _MakeBatch:
    """Loads, augments and collates; runs in the workers."""

    def __init__(
        self, datasets: Mapping[str, Dataset], seed: int, pad_token_id: int | None, device: torch.device | None
    ) -> None:
        self.datasets, self.seed, self.pad_token_id = dict(datasets), seed, pad_token_id
        self.stored = {
            name
            for name, dataset in datasets.items()
            if device is not None and isinstance(dataset, DenseDataset) and dataset.hands_over_stored(device.type)
        }

    def __call__(self, draws: Iterable[_Draw]) -> Batch:
        return [self._group(draw) for draw in draws]

    def _group(self, draw: _Draw) -> Group | StoredGroup:
        dataset, examples = self.datasets[draw.dataset], []
        batch = None
        if draw.dataset in self.stored:
            make: Callable[..., Any] = dataset.stored_example  # type: ignore[attr-defined]
        elif isinstance(dataset, DenseDataset):
            batch = DenseBatch(dataset, len(draw.examples))
            make = batch.add
        else:
            make = dataset.example
        for epoch, index in draw.examples:
            rng = None if epoch is None else augmentation_rng(self.seed, draw.dataset, epoch, index)
            try:
                examples.append(make(index, rng))
            except UserError as error:
                place = f"data set '{draw.dataset}', example {index}: "
                named = [Problem(place + p.what, p.hint, p.see) for p in error.problems]
                raise type(error)(named) from error
            except Exception as error:
                error.add_note(f"while loading example {index} of data set '{draw.dataset}'")
                raise
        if batch is not None:
            return batch.group()
        if draw.dataset in self.stored:
            return collate_stored(draw.dataset, examples, dataset.source.layers)  # type: ignore[attr-defined]
        with torch.no_grad():
            return collate(draw.dataset, examples, self.pad_token_id)
