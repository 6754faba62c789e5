"""Models on disk as safetensors: the header is checked completely before a byte of data is read; reads are mapped."""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import Problem, UserError
from runner.merging.sources import Source, TensorInfo

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
"""Types by the names that safetensors gives them."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LARGEST_HEADER = 100_000_000
_READAHEAD = 1 << 22


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file number and byte offset from the file's beginning."""

    file: int
    offset: int
    info: TensorInfo


def read_header(path: Path) -> tuple[dict[str, tuple[TensorInfo, int]], dict[str, str]]:
    """The tensors of a safetensors file with their byte offsets, and its metadata.

    Raises:
        UserError: the file is torn, cut off, or says things about its tensors that cannot be.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise UserError(f"{path} is not a safetensors file, or its beginning is damaged", _AGAIN)
            header = json.loads(file.read(length))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the header of this safetensors file is damaged", _AGAIN) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    if not isinstance(header, dict):
        raise UserError(f"{path}: the header of this safetensors file is damaged", _AGAIN)
    found, end = {}, 0
    for name, entry in header.items():
        info, begin, stop = _checked(path, name, entry)
        found[name] = (info, 8 + length + begin)
        end = max(end, stop)
    if 8 + length + end > size:
        missing = 8 + length + end - size
        raise UserError(f"{path} is cut off: {missing:,} of {end:,} bytes of tensors are missing", _AGAIN)
    return found, metadata


_AGAIN = "copy or download it again"


def _checked(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    try:
        kind, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the header says nothing sound about tensor '{name}'", _AGAIN) from error
    if kind not in DTYPES:
        raise UserError(f"{path}: tensor '{name}' is of type {kind}, which cannot be merged", f"known: {list(DTYPES)}")
    info = TensorInfo(shape, DTYPES[kind])
    if not 0 <= begin <= stop or stop - begin != info.bytes or any(s < 0 for s in shape):
        what = f"{path}: tensor '{name}' of {list(shape)} {kind} should take {info.bytes:,} bytes, not {stop - begin:,}"
        raise UserError(what, _AGAIN)
    return info, begin, stop


class SafetensorsSource(Source):
    """One model in one or more safetensors files.

    Args:
        files: in order.
        label: for messages.
        weight_map: of an index: tensor → file name; tensors of the files that it does not name are left out.
    """

    def __init__(self, files: Sequence[Path], label: str, weight_map: Mapping[str, str] | None = None) -> None:
        self.label, self.files, self.folder = label, tuple(files), files[0].parent
        self._entries: dict[str, Entry] = {}
        self._maps: dict[int, mmap.mmap] = {}
        problems: list[Problem] = []
        for number, path in enumerate(self.files):
            try:
                header, _ = read_header(path)
            except UserError as error:
                problems += error.problems
                continue
            for name, (info, offset) in header.items():
                if weight_map is None or weight_map.get(name) == path.name:
                    if name in self._entries:
                        problems.append(Problem(f"{self.folder}: tensor '{name}' lies in two files"))
                    self._entries[name] = Entry(number, offset, info)
        if weight_map is not None and not problems:
            lost = [name for name in weight_map if name not in self._entries]
            if lost:
                what = f"{self.folder}: the index names tensors that are not in their files: {some(lost)}"
                problems.append(Problem(what, _AGAIN))
        if problems:
            raise UserError(problems)
        self._infos = {name: entry.info for name, entry in self._entries.items()}

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        entry = self._entries[name]
        stop = entry.info.numel if stop is None else stop
        size = entry.info.dtype.itemsize
        if stop <= start:
            return torch.empty(0, dtype=entry.info.dtype)
        offset = entry.offset + start * size
        mapped = self._map(entry.file)
        if offset % size:  # legal, but nobody reads such memory fast
            data = bytearray(mapped[offset : offset + (stop - start) * size])
            return torch.frombuffer(data, dtype=entry.info.dtype, count=stop - start)
        return torch.frombuffer(mapped, dtype=entry.info.dtype, count=stop - start, offset=offset)

    def _map(self, number: int) -> mmap.mmap:
        mapped = self._maps.get(number)
        if mapped is None:
            with self.files[number].open("rb") as file:
                # Private and never written to; torch wants a buffer that could be.
                flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
                mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with contextlib.suppress(OSError, AttributeError):
                mapped.madvise(mmap.MADV_SEQUENTIAL)
            mapped = self._maps.setdefault(number, mapped)
        return mapped

    def close(self) -> None:
        self._maps.clear()  # a map goes when the last tensor that looks at it goes


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
