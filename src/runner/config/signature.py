"""What decides a result: the part of a configuration that affects weights, its hash, and differences in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

NOT_WEIGHTS = frozenset(
    {
        "name",
        "run_dir",
        "launch",
        "tracking",
        "data_root",
        "output_dir",
        "plugins",
        "baseline",
        "sweep_dir",
        "reference",
    }
)
"""Top-level keys that do not affect weights: names, places, processes, where numbers go."""

NOT_WEIGHTS_TRAINER = frozenset(
    {"log_every", "num_workers", "panels", "checkpoint_every", "keep", "eval_batch_size", "final_split"}
)
"""Keys of `trainer` that do not: how often things are written, and how evaluation is cut into batches."""

SCHEMA = 1
"""Raise it when the same configuration comes to mean another computation."""


def affects_weights(path: str) -> bool:
    """Whether the key at a dotted path is part of the signature."""
    first, _, rest = path.partition(".")
    return first not in NOT_WEIGHTS and not (first == "trainer" and rest.partition(".")[0] in NOT_WEIGHTS_TRAINER)


def weights_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that do not affect weights."""
    kept = {k: v for k, v in config.items() if k not in NOT_WEIGHTS}
    if isinstance(kept.get("trainer"), Mapping):
        kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in NOT_WEIGHTS_TRAINER}
    if not (kept.get("merge") or {}).get("_target_"):
        kept.pop("merging", None)  # read by merges only
    elif isinstance(kept.get("merging"), Mapping):
        kept["merging"] = {k: v for k, v in kept["merging"].items() if k != "diagnostics"}
    init = kept.get("init")
    if isinstance(init, Mapping) and isinstance(init.get("config"), Mapping):
        kept["init"] = {"signature": signature(init["config"])}  # the weights it gives, whatever it is called
    return kept


def signature(config: Mapping[str, Any]) -> str:
    """8 hex digits that two configurations share exactly when they train the same weights.

    The order of keys does not count, nor does writing a whole number as 1 or 1.0.
    """
    canonical = json.dumps([SCHEMA, _canonical(weights_part(config))], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def weights_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The weights-affecting keys in which two configurations differ: (key, old value, new value)."""
    return diff(weights_part(old), weights_part(new))


ABSENT = "(absent)"
"""Stands in a difference for a key that one side does not have."""


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys in which two configurations differ, by dotted path."""
    a, b = dict(flatten(old)), dict(flatten(new))
    keys = [*a, *(k for k in b if k not in a)]
    pairs = ((k, a.get(k, ABSENT), b.get(k, ABSENT)) for k in keys)
    return [(k, x, y) for k, x, y in pairs if _canonical(x) != _canonical(y)]


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted path; lists and empty mappings are leaves."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
