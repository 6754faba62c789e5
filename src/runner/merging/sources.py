"""Named tensors of a model, read lazily and in pieces: what every merge reads from, whether on disk or in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RUNNING = ("running_mean", "running_var")
"""Last parts of the names of batch normalisation's statistics, which are no weights."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and stored type of a tensor; known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Bytes as stored."""
        return self.numel * self.dtype.itemsize


class Source(ABC):
    """The tensors of one model.

    Attributes:
        label: what messages call it: a folder, or the name of an expert.
        folder: where its other files lie (config.json, tokenizer), or None in memory.
        aliases: tied tensors, name → the name under which the same values are stored first.
        note: what a person should know about how it is read; "" for nothing.
    """

    label: str
    note: str = ""
    folder: Path | None = None
    aliases: Mapping[str, str] = {}

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in stored order."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements [start, stop) of a tensor in row-major order, flat, as stored; a view where that is possible.

        The caller does not write to it. Several threads may read at once.
        """

    def whole(self, name: str) -> Tensor:
        """A whole tensor in its shape, as stored."""
        return self.read(name).view(self.tensors()[name].shape)

    def close(self) -> None:
        """Release files; reading afterwards is an error."""
        return None


class StateDict(Source):
    """A model in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str = "model") -> None:
        self.label = label
        self._tensors = {name: t.detach() for name, t in tensors.items()}
        self._infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}
        self.aliases = shared_names(self._tensors)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._tensors[name].reshape(-1)[start:stop]


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tied tensors: name → the first name with the same storage, shape and strides."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if not tensor.numel() or tensor.device.type == "meta":
            continue
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
    return aliases


@dataclass(frozen=True)
class Models:
    """What is merged: experts by name, and the base they were tuned from where there is one."""

    experts: Mapping[str, Source]
    base: Source | None = None

    @classmethod
    def in_memory(cls, experts: Mapping[str, Mapping[str, Tensor]], base: Mapping[str, Tensor] | None = None) -> Models:
        """From state dicts."""
        return cls({k: StateDict(v, k) for k, v in experts.items()}, None if base is None else StateDict(base, "base"))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts, in order."""
        return tuple(self.experts)
