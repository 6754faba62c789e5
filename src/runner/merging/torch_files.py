"""Models in torch files (`.bin`, `.pt`, `.pth`), read with `weights_only` and mapped where the format allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import UserError, first_line
from runner.merging.sources import Source, TensorInfo, shared_names

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the weights."""


class TorchSource(Source):
    """One model in one or more torch files.

    Raises:
        UserError: a file is damaged, holds more than tensors, or no state dict.
    """

    def __init__(self, files: Sequence[Path], label: str) -> None:
        self.label, self.files, self.folder = label, tuple(files), files[0].parent
        self._tensors: dict[str, Tensor] = {}
        for path in self.files:
            self._tensors |= state_dict_in(load(path), path)
        self._infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}
        self.aliases = shared_names(self._tensors)

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = self._tensors[name]
        if tensor.is_contiguous():
            return tensor.view(-1)[start:stop]
        return tensor.reshape(-1)[start:stop]

    def close(self) -> None:
        self._tensors.clear()


def load(path: Path) -> Any:
    """What a torch file holds; nothing but tensors and plain containers can come out of it."""
    hint = "save the weights alone: torch.save(model.state_dict(), …), or better as safetensors"
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of before 1.6
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise UserError(f"{path} is damaged or holds more than tensors: {first_line(error)[:120]}", hint) from error


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file, itself or under one of the usual keys."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise UserError(f"{path} holds no state dict", f"a mapping of tensors, itself or under {', '.join(WRAPPERS)}")
