"""What rooms tell one another about shapes, without importing torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

InputKind = Literal["image", "text", "table", "graph"]
TaskKind = Literal["dense", "pooled", "token"]


def fingerprint(learned: Any) -> str:
    """Sixteen characters for a value that JSON can write; the order of dictionaries does not count."""
    return hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class InputSpec:
    """What a mixture feeds to a backbone.

    Attributes:
        kind: "image": inputs["pixels"] (B, 3, H, W) float32 in [0, 1]; "text": inputs["input_ids"] and
            inputs["attention_mask"] (B, T) int64; "table": inputs["numeric"] (B, F) float32 and
            inputs["categorical"] (B, C) int64; "graph": molecules of at most N atoms, inputs["atoms"] (B, N) int64,
            the atomic number or 0 for none, inputs["positions"] (B, N, 3) float32, in ångström, and inputs["bonds"]
            (B, N, N) int64, 0 none, 1 single, 2 double, 3 triple, 4 aromatic.
        size: (H, W) of training images.
        vocab_size, pad_token_id, max_length: of the tokenizer.
        num_numeric: F. cardinalities: number of values of each of the C categorical columns.
        elements: atomic numbers that occur. num_atoms: of the largest molecule.
        learned: fingerprint of what the mixture took from its training data to make inputs (vocabulary; means and codes
            of columns): weights trained with another one read nonsense. "" where nothing is learned.
    """

    kind: InputKind
    size: tuple[int, int] | None = None
    vocab_size: int | None = None
    pad_token_id: int | None = None
    max_length: int | None = None
    num_numeric: int = 0
    cardinalities: tuple[int, ...] = ()
    elements: tuple[int, ...] = ()
    num_atoms: int | None = None
    learned: str = ""


@dataclass(frozen=True)
class FeatureSpec:
    """What a backbone gives to an architecture.

    Attributes:
        channels, strides: of the pyramid's levels, fine to coarse; empty where there is no pyramid.
        dim: width D of `tokens` (B, T, D) and `pooled` (B, D); 0 where there are none.
    """

    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dim: int = 0
