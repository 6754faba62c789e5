"""Rows of a table: the columns that training read, made into numbers and codes by the run's own statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from runner.errors import UserError
from runner.mixtures.tables import Table
from runner.predicting.reader import Item, Reader
from runner.predicting.request import Request
from runner.predicting.rows import check_columns, columns_of, read_rows

_SHOWN, _KEPT = 3, 1000
"""Unknown categories that a note names, and that are counted."""


class TableReader(Reader):
    """Rows of a file, of which the columns that are no inputs need not be there.

    A missing number becomes the mean, a missing or unknown category the code for that, as in training.

    Raises:
        UserError: the file lacks columns.
    """

    noun = "row"

    def __init__(self, mixture: Table, tasks: Sequence[str], request: Request) -> None:
        self.mixture, self.path = mixture, request.file_path
        check(mixture, tasks, request)
        self.columns, self.keep = ["row", *request.keep], request.keep
        self.passes, self.left_out = {"row": list(tasks)}, {}
        self._unknown: dict[str, Counter[str]] = {column: Counter() for column in mixture.categorical}

    def items(self) -> Iterator[Item]:
        for number, row in read_rows(self.path):
            item = Item(f"row {number}", {"row": number})
            if isinstance(row, str):
                item.errors.append(row)
            else:
                item.content = row
                item.cells |= {column: row.get(column) for column in self.keep}
            yield item

    def prepare(self, items: Sequence[Item]) -> None:
        good = [(item, numbers) for item in items if item.content and (numbers := self._numbers(item)) is not None]
        if not good:
            return
        numbers_NF = np.array([numbers for _, numbers in good], dtype=np.float64)
        texts = {column: [self._category(item, column) for item, _ in good] for column in self.mixture.categorical}
        examples = self.mixture.encode(dict(zip(self.mixture.numeric, numbers_NF.T, strict=True)), texts)
        for (item, _), example in zip(good, examples, strict=True):
            item.examples["row"] = example

    def notes(self) -> list[str]:
        found = []
        for column, unknown in self._unknown.items():
            if unknown:
                named = ", ".join(f"'{text}'" for text, _ in unknown.most_common(_SHOWN))
                more = ", …" if len(unknown) > _SHOWN else ""
                rows = f"{unknown.total():,} row{'s have' if unknown.total() > 1 else ' has'}"
                found.append(f"column '{column}': {rows} a category that no training row had ({named}{more})")
        return found

    def _numbers(self, item: Item) -> list[float] | None:
        values = []
        for column in self.mixture.numeric:
            try:
                values.append(number(item.content.get(column)))
            except ValueError:
                item.errors.append(f"column '{column}': {item.content.get(column)!r} is not a number")
        return None if item.errors else values

    def _category(self, item: Item, column: str) -> str | None:
        encoding = self.mixture.encoding
        text = category(item.content.get(column), encoding.types[column])
        seen = self._unknown[column]
        new = text is not None and text not in encoding.categories[column] and text not in self.mixture.unknown
        if new and (text in seen or len(seen) < _KEPT):
            seen[str(text)] += 1
        return text


def check(mixture: Table, tasks: Sequence[str], request: Request) -> None:
    """Whether a file has the columns that the model reads, and those that are to be kept.

    Raises:
        UserError: with all that are missing.
    """
    wanted, there = [*mixture.numeric, *mixture.categorical], columns_of(request.file_path)
    if lost := [column for column in wanted if column not in there]:
        named = ", ".join(f"'{column}'" for column in lost)
        raise UserError(
            f"--file: '{request.file}' lacks {len(lost)} of the {len(wanted)} columns that the model reads: {named}",
            f"it has {', '.join(there)}; a column may be empty, but must be there",
        )
    check_columns(request.file_path, request.keep, "--keep")


def number(value: Any) -> float:
    """A value of a numeric column, NaN for a missing one.

    Raises:
        ValueError: it is no finite number.
    """
    if value is None or value == "":
        return math.nan
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return float(value.lower() == "true")
        if "_" in value:  # 1_000 is a number to Python alone
            raise ValueError
    try:
        found = float(value)
    except TypeError as error:
        raise ValueError from error
    if math.isinf(found):
        raise ValueError
    return found


def category(value: Any, kind: str) -> str | None:
    """A value of a categorical column as training would have written it.

    Args:
        kind: what the column held there, in Arrow's words: among whole numbers `7`, `07` and `7.0` are one category.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if kind == "string":
        return text
    if kind == "bool":
        return {"1": "true", "0": "false"}.get(text, text.lower())
    if kind.startswith(("int", "uint")):
        try:
            exact = float(text)
            return str(int(text) if text.lstrip("+-").isdigit() else int(exact)) if exact == int(exact) else text
        except (ValueError, OverflowError):
            return text
    return _cast(text, kind)


def _cast(text: str, kind: str) -> str:
    """A text through another type and back: dates, times and fractions in the one way that Arrow writes them."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        return str(compute.cast(compute.cast(pa.scalar(text), pa.type_for_alias(kind)), pa.string()).as_py())
    except (pa.ArrowException, ValueError):  # no such value, or a kind without a short name
        return text
