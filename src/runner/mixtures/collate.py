"""Examples (numpy) become groups (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from runner.mixtures.lending import empty
from runner.mixtures.tokenizer import PAD_MULTIPLE
from runner.types import MISSING_INT, Group

if TYPE_CHECKING:
    from runner.mixtures.base import Example

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")
_PER_ATOM = {"atoms": 1, "positions": 1, "bonds": 2}
"""Input → how many of its dimensions count atoms."""


def collate(name: str, examples: Sequence[Example], pad_token_id: int | None = None) -> Group:
    """Stack examples of one data set.

    Texts are padded to the longest of them, rounded up to a multiple of 8: `input_ids` with `pad_token_id`, the other
    inputs of one number per token with 0, and targets of one integer per token with -100. Molecules are padded with 0
    to the largest of them. A target that only some examples have is filled with -100 (integers) or NaN (floats) for the
    others; one that none has is left out.

    Args:
        name: the data set's name.
        examples: at least one.
        pad_token_id: of the tokenizer; None for images and tables.

    Raises:
        ValueError: the examples do not have the same inputs or shapes.
    """
    if not examples:
        raise ValueError(f"data set '{name}': nothing to collate")
    ids = [example.id for example in examples]
    lengths = [len(example.inputs["input_ids"]) for example in examples if "input_ids" in example.inputs]
    width = -(-max(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE if lengths else 0
    inputs = {}
    for key in dict.fromkeys(key for example in examples for key in example.inputs):
        rows = [example.inputs.get(key) for example in examples]
        if any(row is None for row in rows):
            raise ValueError(f"data set '{name}': some of {_few(ids)} have no input '{key}'")
        arrays = [np.asarray(row) for row in rows]
        if width and key in _PER_TOKEN:
            fill = (pad_token_id or 0) if key == "input_ids" else 0
            arrays = [_pad(array, width, fill) for array in arrays]
        elif key in _PER_ATOM:
            arrays = _pad_atoms(arrays, _PER_ATOM[key])
        inputs[key] = _stack(arrays, name, f"input '{key}'", ids)
    targets = {}
    for task in dict.fromkeys(task for example in examples for task in example.targets):
        arrays = [np.asarray(example.targets[task]) if task in example.targets else None for example in examples]
        first = next(array for array in arrays if array is not None)
        if width and first.ndim == 1 and first.dtype.kind in "iu":  # one tag per token
            arrays = [None if array is None else _pad(array, width, MISSING_INT) for array in arrays]
            first = next(array for array in arrays if array is not None)
        missing = np.full_like(first, np.nan if first.dtype.kind == "f" else MISSING_INT)
        filled = [missing if array is None else array for array in arrays]
        targets[task] = _stack(filled, name, f"target '{task}'", ids)
    return Group(name, inputs, targets, ids)


def _pad(array: np.ndarray, width: int, fill: int) -> np.ndarray:
    padded = np.full(width, fill, dtype=np.int64)
    padded[: len(array)] = array
    return padded


def _pad_atoms(arrays: Sequence[np.ndarray], dimensions: int) -> list[np.ndarray]:
    """Arrays whose first dimensions are those of the largest, filled with 0."""
    most = max(len(array) for array in arrays)
    return [
        np.pad(array, [(0, most - len(array))] * dimensions + [(0, 0)] * (array.ndim - dimensions)) for array in arrays
    ]


def _stack(arrays: Sequence[np.ndarray], name: str, what: str, ids: Sequence[str]) -> Tensor:
    """(B, …) as float32 or int64; other kinds of numbers keep their type."""
    first = arrays[0]
    for array, example in zip(arrays, ids, strict=True):
        if array.shape != first.shape:
            raise ValueError(
                f"data set '{name}': {what} of '{example}' has shape {array.shape}, that of '{ids[0]}' {first.shape}"
            )
    dtype = {"f": np.float32, "i": np.int64, "u": np.int64}.get(first.dtype.kind, first.dtype)
    batch = empty(len(arrays), *first.shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    np.stack(arrays, out=batch.numpy(), casting="unsafe")  # to `dtype`, whatever the others are
    return batch


def _few(ids: Sequence[str]) -> str:
    return ", ".join(f"'{i}'" for i in ids[:3]) + (", …" if len(ids) > 3 else "")
