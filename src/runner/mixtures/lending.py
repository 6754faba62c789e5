"""Batches travel from a loading process in memory that is used again, instead of in new memory each time.

Shared memory is handed out by the system page by page, each cleared on its first use and mapped anew on the other side:
for a batch of dense examples that costs as much as an augmentation. So a loading process keeps the memory of a few
batches, in which examples are made where they will lie (`empty`). A batch is a loan: once nothing of it is referred to
any more in the training process, which sees that from the life of the memory's Python object, not from a promise of
the caller, the same memory serves another batch. Where there is none to be had, batches travel as PyTorch sends them.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_LOANS = 8
"""So many batches of one process can be on their way or in use; more of them travel as PyTorch sends them."""

_ROOM = 1.25  # where batches turn out to differ in size

_numbers = itertools.count()
_current: Loan | None = None


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """As `torch.empty`: in a loading process, where the batch that is being made will travel. Not to be kept there."""
    found = _current.empty(shape, dtype) if _current is not None else None
    return torch.empty(shape, dtype=dtype) if found is None else found


class Lender:
    """What both sides know of the memory of one loader; made in the training process, sent to those that load.

    Args:
        workers: how many processes load. context: in which they are started.
    """

    def __init__(self, workers: int, context: Any) -> None:
        self.number = next(_numbers)
        self.lent = context.RawArray("B", workers * MOST_LOANS)
        _borrowers[self.number] = self, {}

    def close(self) -> None:
        """Forget the memory; batches that are still referred to keep theirs."""
        _borrowers.pop(self.number, None)


# ---- in a loading process --------------------------------------------------------------------------------------------


class Shelf:
    """The memory of one loading process.

    Args:
        lender: of the loader. worker: number of this process.
    """

    def __init__(self, lender: Lender, worker: int) -> None:
        self.lender, self._first = lender, worker * MOST_LOANS
        self._memory: dict[int, _Memory] = {}

    def make(self, make: Callable[[Any], Any], entry: Any) -> Any:
        """A batch of this entry, ready to travel."""
        global _current
        place = next((p for p in range(self._first, self._first + MOST_LOANS) if not self.lender.lent[p]), None)
        if place is None:
            return make(entry)
        loan = _current = Loan(self._memory.get(place) or _Memory(0))
        try:
            batch = make(entry)
        finally:
            _current = None
        try:
            sent = loan.pack(batch, self.lender.number, place)
        except OSError:  # none to be had: the batch, which may lie in what there was, keeps that
            self._memory.pop(place, None)
            return batch
        self._memory[place] = loan.memory
        self.lender.lent[place] = 1
        return sent


class _Memory:
    """Memory that can be mapped by another process, without a name.

    Attributes:
        known: whether the other side has it.
    """

    def __init__(self, size: int) -> None:
        self.size, self.known, self.file = size, False, -1
        self.bytes = np.empty(0, np.uint8)
        if size:
            self.file = os.memfd_create("runner-batch")
            weakref.finalize(self, os.close, self.file)
            os.posix_fallocate(self.file, 0, size)
            self.bytes = _mapped(self.file, size)


class Loan:
    """The memory of one batch while it is made.

    Attributes:
        memory: where it lies; another one where the batch turns out to be larger.
    """

    def __init__(self, memory: _Memory) -> None:
        self.memory, self._used = memory, 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """A tensor in this memory; None where it is full."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        if self._used + size > self.memory.size:
            return None
        begin, self._used = self._used, self._used + _rounded(size)
        return _tensor(self.memory.bytes, begin, size, shape, dtype)

    def pack(self, batch: Any, number: int, place: int) -> Lent:
        """The batch as it travels: tensors that do not lie here yet are copied."""
        tensors: list[Tensor] = []
        sent = io.BytesIO()
        _Pickler(sent, tensors).dump(batch)
        start = self.memory.bytes.ctypes.data
        begins = [t.data_ptr() - start for t in tensors]
        here = [b >= 0 and b + t.nbytes <= self.memory.size for b, t in zip(begins, tensors, strict=True)]
        missing = sum(_rounded(t.nbytes) for t, h in zip(tensors, here, strict=True) if not h)
        if self._used + missing > self.memory.size:
            needed = sum(_rounded(t.nbytes) for t in tensors)
            self.memory, self._used = _Memory(int(needed * _ROOM) if self.memory.size else needed), 0
            here = [False] * len(tensors)
        for i, tensor in enumerate(tensors):
            if not here[i]:
                begins[i], self._used = self._used, self._used + _rounded(tensor.nbytes)
                _tensor(self.memory.bytes, begins[i], tensor.nbytes, tensor.shape, tensor.dtype).copy_(tensor)
        table = [(b, t.nbytes, tuple(t.shape), t.dtype) for b, t in zip(begins, tensors, strict=True)]
        return Lent(number, place, self.memory, sent.getvalue(), table)


def _rounded(size: int) -> int:
    return -(-size // 64) * 64  # every type of number begins at a multiple of its size


class _Pickler(ForkingPickler):
    """Leaves tensors out, and lists them."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors

    def persistent_id(self, value: Any) -> int | None:
        plain = type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided
        if not plain or value.requires_grad or not value.is_contiguous():
            return None
        self._tensors.append(value)
        return len(self._tensors) - 1


_Table = list[tuple[int, int, tuple[int, ...], torch.dtype]]


class Lent:
    """A batch on its way; unpickled, it is the batch.

    Args:
        number: of the lender. place: of the memory among the lender's. memory: itself. batch: pickled without tensors.
        table: where each tensor begins, its bytes, shape and type.
    """

    def __init__(self, number: int, place: int, memory: _Memory, batch: bytes, table: _Table) -> None:
        self._number, self._place, self._memory, self._batch, self._table = number, place, memory, batch, table

    def __reduce__(self) -> tuple[Any, ...]:
        memory = self._memory
        file = DupFd(memory.file) if memory.size and not memory.known else None
        memory.known = True
        return _borrow, (self._number, self._place, file, memory.size, self._batch, self._table)


# ---- in the training process -----------------------------------------------------------------------------------------

_borrowers: dict[int, tuple[Lender, dict[int, mmap.mmap]]] = {}
"""Number of a lender → it, and its memory by place."""


def _borrow(number: int, place: int, file: Any, size: int, batch: bytes, table: _Table) -> Any:
    """The batch, in memory that is given back when nothing refers to it any more."""
    if number not in _borrowers:
        return None  # the loader was closed; nobody will look at this
    lender, memory = _borrowers[number]
    if file is not None:
        descriptor = file.detach()
        try:
            memory[place] = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    # Every tensor refers to a slice of this array, and that to the array itself, which is of this batch alone.
    loan = np.frombuffer(memory[place], np.uint8) if size else np.empty(0, np.uint8)
    weakref.finalize(loan, _give_back, lender, place).atexit = False
    tensors = [_tensor(loan, *entry) for entry in table]
    return _Unpickler(io.BytesIO(batch), tensors).load()


def _give_back(lender: Lender, place: int) -> None:
    lender.lent[place] = 0


class _Unpickler(pickle.Unpickler):
    """Puts tensors where they were left out."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def _mapped(file: int, size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


def _tensor(memory: np.ndarray, begin: int, size: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if not size:
        return torch.empty(*shape, dtype=dtype)
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(*shape)
