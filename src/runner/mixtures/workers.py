"""Worker processes that load data: started cleanly, deaf to stop signals, gone with their parent.

Workers come from a fork server, not from a fork of the training process: that one has threads (OpenMP, autograd,
gloo, W&B) and possibly CUDA, and a fork copies their locks in whatever state they are in, so that a worker may hang.
A spawned process would be as safe but imports torch each time; the fork server imports it once and forks from there.
Data sets therefore travel by pickle: they must be picklable, and should open large files lazily.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from runner.children import begin_child, starting_children
from runner.errors import RunFailed
from runner.mixtures.lending import Lender, Shelf
from runner.types import Batch

_PATIENCE_S = 2.0


class Loader(Iterator[Batch]):
    """Batches in the order of the plan; raises what was raised in a worker."""

    def __init__(self, loader: DataLoader, lender: Lender | None = None) -> None:
        self._lender = lender
        with starting_children() if loader.num_workers else contextlib.nullcontext():
            self._batches: Iterator[Any] | None = iter(loader)
            self._workers = list(getattr(self._batches, "_workers", ()))

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        try:
            loaded = next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            # With workers, errors of the data come as a _Failure. What is raised here is the way to the worker that
            # broke: DataLoader's own message, or that of a socket whose other end is gone.
            if not self._workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            raise RunFailed(
                f"a process that loads data has died: {(str(error) or type(error).__name__).splitlines()[0]}",
                "mostly for lack of memory or /dev/shm: lower trainer.num_workers, or set it to 0 to see the error",
            ) from error
        if isinstance(loaded, _Failure):
            raise loaded.error
        return loaded

    def close(self) -> None:
        """End the workers, by force if they do not answer."""
        self._batches = None  # the iterator's finalizer tells its workers to end
        for worker in self._workers:
            worker.join(_PATIENCE_S)
            if worker.is_alive():
                worker.kill()  # SIGTERM is ignored there
        self._workers = []
        if self._lender is not None:
            self._lender.close()


def open_loader(make: Callable[[Any], Batch], plan: Iterable[Any], *, num_workers: int, pin_memory: bool) -> Loader:
    """Make a batch of every entry of `plan`, in order, `num_workers` at a time (0: in this process, when asked for).

    Args:
        make: picklable where there are workers; the plan's entries as well.
        plan: consumed in this process, ahead of the batches that are handed out.
        num_workers: processes. pin_memory: see `torch.utils.data.DataLoader`.
    """
    context, lender = None, None
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["runner.mixtures.stream", "PIL.Image"])
        lender = Lender(num_workers, context) if hasattr(os, "memfd_create") else None
    return Loader(
        DataLoader(
            _Work(make, num_workers > 0, lender),
            batch_size=None,
            sampler=_Plan(plan),
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            multiprocessing_context=context,
            worker_init_fn=_start_worker if num_workers else None,
            generator=torch.Generator(),  # without it, opening a loader draws from the global generator
        ),
        lender,
    )


class _Plan:
    """A sampler for DataLoader, which only ever iterates it."""

    def __init__(self, plan: Iterable[Any]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Any]:
        return iter(self.plan)


class _Work(Dataset):
    """What DataLoader calls a data set: an index is an entry of the plan, an item is a batch."""

    def __init__(self, make: Callable[[Any], Batch], catch: bool, lender: Lender | None) -> None:
        self.make, self.catch, self.lender = make, catch, lender
        self._shelf: Shelf | None = None  # of a worker

    def __getitem__(self, entry: Any) -> Any:
        if not self.catch:
            return self.make(entry)
        try:
            if self.lender is None:
                return self.make(entry)
            if self._shelf is None:
                self._shelf = Shelf(self.lender, get_worker_info().id)
            return self._shelf.make(self.make, entry)
        except Exception as error:
            return _Failure.of(error)


class _Failure:
    """An exception on its way out of a worker; DataLoader itself would send its traceback as the message."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        trace = traceback.format_exc()
        try:
            sent = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes: does it survive the way?
        except Exception:
            sent = RuntimeError(f"{type(error).__name__}: {error}")
        for note in (*getattr(error, "__notes__", ()), f"in a worker process:\n{trace}"):
            if note not in getattr(sent, "__notes__", ()):
                sent.add_note(note)
        return cls(sent)


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(worker_id: int) -> None:
    """First thing in a worker: one thread, deaf to stop signals, and an end when the training process ends."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    begin_child()  # torch's own watchdog looks at the id of the fork server
