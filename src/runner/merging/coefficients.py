"""Coefficients of a merge: one per expert, scaled or replaced for the tensors that a pattern names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from runner.errors import UserError

Factor = float | Sequence[float]
"""A number for all experts, or one per expert."""


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def matches(pattern: str, name: str) -> bool:
    """Whether a tensor's name fits: a glob over the whole name (`*.attn.*`), or `re:` and an expression found in it.

    With `re?:` it is no mistake if the expression fits no tensor at all.
    """
    if pattern.startswith(("re:", "re?:")):
        return _compiled(pattern.partition(":")[2]).search(name) is not None
    return fnmatchcase(name, pattern)


def table(given: Mapping[str, Any] | Sequence[Any], where: str) -> dict[str, Any]:
    """A mapping from patterns, or a list of pairs, as a mapping; patterns that are no expressions are refused."""
    if isinstance(given, Mapping):
        found = {str(k): v for k, v in given.items()}
    elif all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in given):
        found = {str(k): v for k, v in given}
    else:
        raise UserError(f"{where} must map patterns to numbers", f"such as '{where}={{*.attn.*: 0.5}}'")
    for pattern in found:
        if pattern.startswith(("re:", "re?:")):
            try:
                re.compile(pattern.partition(":")[2])
            except re.error as error:
                raise UserError(f"{where}: '{pattern}' is no regular expression: {error}") from error
    return found


def factor_at(layers: Mapping[str, Factor], name: str, experts: int) -> list[float]:
    """The factor of each expert for one tensor: of the first pattern that fits, else 1."""
    for pattern, value in layers.items():
        if matches(pattern, name):
            return [float(value)] * experts if isinstance(value, int | float) else [float(v) for v in value]
    return [1.0] * experts
