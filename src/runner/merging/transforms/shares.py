"""Shares of a task vector that may differ between experts."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import Problem

Share = float | Sequence[float]
"""A number for all experts, or one per expert."""


def share_of(given: Share, index: int) -> float:
    """That of one expert."""
    return float(given if isinstance(given, int | float) else given[index])


def shares(given: Share, count: int) -> list[float]:
    """That of every expert."""
    return [share_of(given, index) for index in range(count)]


def check_share(given: Share, count: int, where: str) -> list[Problem]:
    """What is wrong with the number of values."""
    if isinstance(given, int | float) or len(given) == count:
        return []
    return [Problem(f"{where} has {len(given)} values for {count} experts", "give one for all, or one per expert")]
