"""Texts, pairs of texts and texts given as words, tokenised by the run's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runner.errors import UserError
from runner.mixtures.base import Example
from runner.mixtures.text import Texts
from runner.mixtures.tokenizer import Encoded
from runner.predicting.reader import Item, Reader
from runner.predicting.request import Request
from runner.predicting.rows import TEXT, check_columns, columns_of, read_rows

PAIR = "pair"


class TextReader(Reader):
    """Texts of the command line or of a file. Tasks that read the same columns share a forward pass.

    Raises:
        UserError: no task finds its columns.
    """

    noun = "text"

    def __init__(self, mixture: Texts, tasks: Sequence[str], request: Request) -> None:
        self.mixture, self.request = mixture, request
        places, self.left_out = where(mixture, tasks, request)
        self.passes = {}
        self._columns: dict[str, tuple[list[str], bool]] = {}
        for task, (source, columns) in places.items():
            words = source in mixture.words
            name = f"{' | '.join(columns)}{' (words)' if words else ''}"
            self.passes.setdefault(name, []).append(task)
            self._columns[name] = columns, words
        self._texts = list(dict.fromkeys(c for columns, _ in self._columns.values() for c in columns))
        self._keep = [column for column in request.keep if column not in self._texts]
        self.columns = ["row", *self._texts, *self._keep]

    def items(self) -> Iterator[Item]:
        for number, row in self._rows():
            item = Item(f"row {number}", {"row": number})
            if isinstance(row, str):
                item.errors.append(row)
            else:
                item.content = row
                item.cells |= {column: row.get(column) for column in (*self._texts, *self._keep)}
            yield item

    def _rows(self) -> Iterator[tuple[int, Any]]:
        if self.request.file is not None:
            yield from read_rows(self.request.file_path)
            return
        for i, text in enumerate(self.request.texts):
            yield i + 1, {TEXT: text} | ({PAIR: self.request.pairs[i]} if self.request.pairs else {})

    def prepare(self, items: Sequence[Item]) -> None:
        encoder = self.mixture.encoder
        assert encoder is not None, "restore or setup comes first"
        for name, (columns, words) in self._columns.items():
            read = [(item, self._read(item, columns, words)) for item in items if item.content is not None]
            good = [(item, found) for item, found in read if found is not None]
            if not good:
                continue
            firsts = [found[0] for _, found in good]
            seconds = [found[1] for _, found in good] if len(columns) == 2 else None
            for (item, found), encoded in zip(good, encoder.encode(firsts, seconds), strict=True):
                ids_T = np.asarray(encoded.ids, dtype=np.int64)
                item.examples[name] = Example({"input_ids": ids_T, "attention_mask": np.ones_like(ids_T)})
                if words:
                    item.words[name] = first_tokens(encoded, len(found[0]))

    def name(self, item: Item) -> str:
        found = [item.cells.get(column) for column in self._texts]
        return " | ".join(" ".join(text) if isinstance(text, list) else str(text) for text in found if text)

    def _read(self, item: Item, columns: Sequence[str], words: bool) -> list[Any] | None:
        """The texts of an item, as words where the tokenizer wants words; None where one is missing."""
        found: list[Any] = []
        for column in columns:
            value = item.content.get(column)
            listed = isinstance(value, list) and all(isinstance(word, str) for word in value)
            if not value or not (listed or isinstance(value, str)) or not (listed or value.strip()):
                what = "has no text" if value is None or value in ("", []) or isinstance(value, str) else "is no text"
                item.errors.append(f"column '{column}' {what}" if self.request.file else "it has no text")
                return None
            if words:
                found.append(value if listed else value.split())
                item.cells[column] = found[-1]
            else:
                found.append(" ".join(value) if listed else value)
        return found


def where(
    mixture: Texts, tasks: Sequence[str], request: Request
) -> tuple[dict[str, tuple[str, list[str]]], dict[str, str]]:
    """Where each task finds its texts: task → (its data set, columns), and the others → why not.

    A task reads the columns of the data set that it was trained on; `--columns`, `--text` and a .txt file, which have
    no names that could be others, serve every task that takes as many texts.

    Raises:
        UserError: none finds them, one that was asked for by name does not, or a column is not there.
    """
    given = list(request.columns)
    if request.file is None:
        given, there = [TEXT, PAIR] if request.pairs else [TEXT], None
    else:
        there = columns_of(request.file_path)
        check_columns(request.file_path, [*given, *request.keep], "--columns" if given else "--keep")
        given = given or ([TEXT] if request.file_path.suffix.lower() == ".txt" else [])
    found: dict[str, tuple[str, list[str]]] = {}
    left_out: dict[str, str] = {}
    for task in tasks:
        wanted = [(name, mixture.sources[name].columns) for name, labels in mixture.labels.items() if task in labels]
        for name, columns in wanted:
            if len(columns) == len(given) if given else set(columns) <= set(there or ()):
                found[task] = name, given or columns
                break
        else:
            left_out[task] = _why(wanted[0][1], given)
    lost = {task: why for task, why in left_out.items() if task in request.tasks or not found}
    if lost:
        task, why = next(iter(lost.items()))
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        hint = f"it has {', '.join(there)}; say where the texts are: --columns NAME" if there and not given else ""
        raise UserError(f"task '{task}'{more} {why}", hint or _hint(mixture, request), "runner predict --help")
    return found, left_out


def _why(columns: Sequence[str], given: Sequence[str]) -> str:
    if not given:
        return f"reads {' and '.join(repr(c) for c in columns)}, which the file does not have"
    return f"compares two texts ({', '.join(columns)})" if len(columns) == 2 else "takes one text, not a pair"


def _hint(mixture: Texts, request: Request) -> str:
    if request.file is None:
        return "leave --pair out" if request.pairs else '--text "first" --pair "second", or --file with both columns'
    return "name as many columns as the task has texts: --columns A,B"


def first_tokens(encoded: Encoded, count: int) -> list[int | None]:
    """Where each of `count` words begins among the tokens; None for those that were cut off or have no token."""
    places: list[int | None] = [None] * count
    for position, word in enumerate(encoded.words or ()):
        if word is not None and places[word] is None:
            places[word] = position
    return places


def pairs_of(cells: Mapping[str, Any], tags: Sequence[str | None]) -> str:
    """`word/TAG word/TAG`, as people read tags."""
    words = next((value for value in cells.values() if isinstance(value, list)), [])
    return " ".join(f"{word}/{tag or '?'}" for word, tag in zip(words, tags, strict=True))
