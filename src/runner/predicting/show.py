"""What a person reads of predictions: all of a few, and of many what was said how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.cli.output import print_table

FEW = 20
"""Inputs that are shown one by one."""

_WIDTH = 100
"""Columns of a terminal that a table may take; where tasks need more, each has a line of its own."""

_CLASSES = 4
"""Classes that a summary names."""

_LONGEST = 60


@dataclass
class Shown:
    """The first answers, and counts of all.

    Attributes:
        tasks: in order. first: (input, task → words) of the first `FEW` inputs.
        said: task → class → how often. numbers: task → count, sum, smallest, largest.
    """

    tasks: Sequence[str]
    first: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    said: dict[str, Counter[str]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    count: int = 0

    def add(self, values: Mapping[str, Any], name: Callable[[], str], words: Callable[[], dict[str, str]]) -> None:
        """Take in one input.

        Args:
            values: task → the answer. name: of the input. words: task → what a person reads; both asked for of a few.
        """
        self.count += 1
        if self.count <= FEW:
            self.first.append((name(), words()))
        for task, value in values.items():
            if isinstance(value, float):
                seen = self.numbers.setdefault(task, [0, 0.0, value, value])
                self.numbers[task] = [seen[0] + 1, seen[1] + value, min(seen[2], value), max(seen[3], value)]
            else:
                self.said.setdefault(task, Counter()).update(value if isinstance(value, list) else [value])

    def show(self, noun: str) -> None:
        """Print it."""
        if 0 < self.count <= FEW:
            self._one_by_one(noun)
        elif self.count:
            print_table(["task", "predicted"], [[task, self._summary(task)] for task in self.tasks])

    def _one_by_one(self, noun: str) -> None:
        heads = [noun, *self.tasks]
        rows = [[_short(name), *(words.get(task, "") for task in self.tasks)] for name, words in self.first]
        width = sum(2 + max(map(len, column)) for column in zip(heads, *rows, strict=True))
        if width <= _WIDTH and self.count > 1:
            print_table(heads, rows)
            return
        for i, (name, words) in enumerate(self.first):
            print(("\n" if i else "") + _short(name))
            width = max(map(len, self.tasks))
            for task in self.tasks:
                print(f"  {task.ljust(width)}  {words.get(task, '')}".rstrip())

    def _summary(self, task: str) -> str:
        if task in self.numbers:
            count, total, low, high = self.numbers[task]
            return f"mean {total / count:.4g}, from {low:.4g} to {high:.4g}"
        said = self.said.get(task, Counter())
        whole = max(said.total(), 1)
        parts = [f"{name} {number / whole:.1%}" for name, number in said.most_common(_CLASSES)]
        more = f", {len(said) - _CLASSES} other classes" if len(said) > _CLASSES else ""
        return ", ".join(parts) + more


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
