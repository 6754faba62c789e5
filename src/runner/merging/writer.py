"""Writing safetensors as results come: the header first, every piece at its place, a whole file under its name only."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from runner.files import fsync_directory
from runner.merging.disk import DTYPE_NAMES
from runner.merging.sources import TensorInfo


class SafetensorsWriter:
    """One file whose tensors are known beforehand and arrive in pieces, in any order, from several threads.

    It is written under a temporary name beside `path`; `finish` syncs and renames it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.part")
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        self._offsets: dict[str, int] = {}
        # The widest types first, so that everything is aligned.
        for name, info in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            stop = offset + info.bytes
            header[name] = {
                "dtype": DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [offset, stop],
            }
            self._offsets[name] = offset
            offset = stop
        self._sizes = {name: info.dtype.itemsize for name, info in tensors.items()}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self.bytes = self._begin + offset
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.ftruncate(self._file, self.bytes)
        _write(self._file, memoryview(len(text).to_bytes(8, "little") + text), 0)

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Write flat `values`, of the stored type, from element `start` on."""
        at = self._begin + self._offsets[name] + start * self._sizes[name]
        _write(self._file, memoryview(values.contiguous().view(-1).view(torch.uint8).numpy()), at)

    def finish(self) -> None:
        """Make it durable and give it its name."""
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self.temporary, self.path)
        fsync_directory(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        os.close(self._file)
        self.temporary.unlink(missing_ok=True)


def _write(file: int, data: memoryview, at: int) -> None:
    while data.nbytes:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def shard(sizes: Sequence[tuple[str, int]], limit: int) -> list[list[str]]:
    """Tensors (name, bytes) in order, in groups of at most `limit` bytes; one that is larger stands alone."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes:
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def shard_names(stem: str, count: int) -> list[str]:
    """`model.safetensors`, or `model-00001-of-00003.safetensors`, …"""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


class Later:
    """Runs finishing touches in one thread beside the work, and hands on what goes wrong."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def do(self, writers: Sequence[SafetensorsWriter]) -> None:
        """Finish these files, after those that were given before."""
        before = self._threads[-1] if self._threads else None

        def run() -> None:
            if before is not None:
                before.join()
            try:
                for writer in writers:
                    writer.finish()
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> None:
        """Until all is done."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
