"""What the readers of inputs have in common: they give items one after the other, then examples a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.mixtures.base import Example


@dataclass
class Item:
    """One input.

    Attributes:
        where: says which it is, in messages: "row 17", a path.
        cells: column → value, of the columns that say which it is.
        content: what `prepare` makes examples of.
        examples: pass → example; none where it cannot be read.
        words: pass → position of every word's token, None for a word that was cut off; of texts given as words.
        errors: why it cannot be read.
    """

    where: str
    cells: dict[str, Any]
    content: Any = None
    examples: dict[str, Example] = field(default_factory=dict)
    words: dict[str, list[int | None]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class Reader(ABC):
    """Inputs of one kind.

    Attributes:
        noun: what one of them is called.
        columns: of `Item.cells`.
        passes: forward passes that an item needs → the tasks of each.
        left_out: task → why it is not among them.
    """

    noun: str
    columns: list[str]
    passes: dict[str, list[str]]
    left_out: dict[str, str]

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All inputs in order, one at a time."""

    @abstractmethod
    def prepare(self, items: Sequence[Item]) -> None:
        """Give items their examples, or the reason why they have none."""

    def name(self, item: Item) -> str:
        """How a person knows an item; not "row 5" where there is something better."""
        return item.where

    def notes(self) -> list[str]:
        """What a person should know of the inputs, once all were read."""
        return []
