"""Texts and pairs of texts with labels, or texts given as words with a tag for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.config.kinds import NonNegativeFloat, NonNegativeInt, PositiveInt
from runner.errors import Problem, UserError
from runner.mixtures.base import Dataset, Example, Split
from runner.mixtures.blobs import Blobs
from runner.mixtures.from_sources import FromSources
from runner.mixtures.labels import MISSING_INT, read_tags, targets_at
from runner.mixtures.rows import Rows
from runner.mixtures.sources import Source
from runner.mixtures.tokenizer import PAD_MULTIPLE, Encoded, Pretrained, TextTokenizer, WordPiece
from runner.specs import InputSpec, fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 60
"""Characters of a text that stand in its id."""


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """A data set of texts.

    Attributes:
        text: column of texts, or of lists of words; two columns make pairs.
    """

    text: str | list[str] = "text"

    @property
    def columns(self) -> list[str]:
        """The one or two columns of texts."""
        return [self.text] if isinstance(self.text, str) else list(self.text)


class Texts(FromSources):
    """Tokenised texts from parquet, CSV, JSON lines, or the hub.

    The vocabulary that is trained without a checkpoint comes from the training texts of all `sources`, also of those
    whose tasks the run leaves out: so the models of single tasks can be compared, and merged, with joint ones.

    Args:
        sources: data set → `TextSource`.
        max_length: texts are cut after so many tokens.
        tokenizer: local folder or hub id; None takes that of the backbone's checkpoint, or trains a vocabulary.
        vocab_size, lowercase: of a trained vocabulary, see `WordPiece`.
        validation, test, split_seed, hub: see `FromSources`.
    """

    input_kind = "text"
    source_kind = TextSource

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        sources: Mapping[str, Any],
        max_length: PositiveInt = 128,
        tokenizer: str | None = None,
        vocab_size: PositiveInt = 8000,
        lowercase: bool = True,
        validation: NonNegativeFloat = 0.1,
        test: NonNegativeFloat | None = None,
        split_seed: NonNegativeInt = 0,
        hub: bool = False,
    ) -> None:
        super().__init__(
            data_root, tasks=tasks, sources=sources, validation=validation, test=test, split_seed=split_seed, hub=hub
        )
        for name, source in self.sources.items():
            if len(source.columns) not in (1, 2):
                what = f"'mixture.sources.{name}.text' must name one column, or two for pairs"
                self._problems.append(Problem(what))
        self.max_length, self.tokenizer = max_length, tokenizer
        self.vocab_size, self.lowercase = vocab_size, lowercase
        self._encoder: TextTokenizer | None = None

    @property
    def needed(self) -> list[str]:
        """All sources, for a vocabulary that is trained is that of all texts, whichever tasks a run has."""
        return super().needed if self.tokenizer else list(self.sources)

    @property
    def encoder(self) -> TextTokenizer | None:
        """The tokenizer, once `setup` has chosen it."""
        return self._encoder

    def setup(self, pretrained: str | None) -> InputSpec:
        self.inspect()
        self._encoder = self._pretrained(pretrained)
        if self._encoder is None:
            self._encoder = WordPiece(
                self._training_texts(),
                vocab_size=self.vocab_size,
                lowercase=self.lowercase,
                max_length=self.max_length,
            )
        # Batches are padded to a multiple of PAD_MULTIPLE, which may be a little more than the longest text.
        longest = -(-self._encoder.max_length // PAD_MULTIPLE) * PAD_MULTIPLE
        return InputSpec(
            "text",
            vocab_size=self._encoder.vocab_size,
            pad_token_id=self._encoder.pad_token_id,
            max_length=longest,
            learned=fingerprint(self._encoder.vocabulary),
        )

    def keep(self) -> dict[str, Any]:
        """The tokens that were learned, by their numbers (null: a checkpoint's), and the sources that come as words."""
        learned = isinstance(self._encoder, WordPiece)
        tokens = sorted(self._encoder.vocabulary, key=self._encoder.vocabulary.__getitem__) if learned else None
        return {"tokens": tokens, "words": sorted(self.words)}

    def restore(self, kept: Mapping[str, Any], pretrained: str | None) -> None:
        self.words = set(kept["words"])
        self._encoder = self._pretrained(pretrained)
        if self._encoder is None:
            self._encoder = WordPiece.of(kept["tokens"], lowercase=self.lowercase, max_length=self.max_length)

    def _pretrained(self, pretrained: str | None) -> TextTokenizer | None:
        """The tokenizer of a checkpoint; None where the vocabulary is learned."""
        checkpoint = self.tokenizer or pretrained
        if checkpoint is None:
            return None
        words = any(label.form == "tags" for labels in self.labels.values() for label in labels.values())
        key = "mixture.tokenizer" if self.tokenizer else "backbone.pretrained"
        return Pretrained(checkpoint, max_length=self.max_length, words=words, key=key)

    @cached_property
    def words(self) -> set[str]:
        """The sources whose texts come as lists of words."""
        from pyarrow import types

        kinds = {name: self.rows(name, "train")[0].column(self.sources[name].columns[0]).type for name in self.labels}
        return {name for name, kind in kinds.items() if types.is_list(kind) or types.is_large_list(kind)}

    def dataset(self, name: str, split: Split) -> Dataset:
        if self._encoder is None:
            raise RuntimeError("setup comes before datasets")
        rows, numbers = self.rows(name, split)
        columns = [_texts(rows, column).take(numbers) for column in self.sources[name].columns]
        seconds = columns[1].to_pylist() if len(columns) == 2 else None
        tags = {
            task: read_tags(label, rows, self.classes(name, label))
            for task, label in self.labels[name].items()
            if label.form == "tags"
        }
        return TextSet(
            name,
            split=rows.split,
            numbers=numbers,
            texts=Blobs(_readable(columns)),
            encoded=self._encoder.encode(columns[0].to_pylist(), seconds),
            targets=self.targets(name, rows),
            tags=tags,
        )

    def inspect_inputs(self, name: str, rows: Rows) -> None:
        for column in self.sources[name].columns:
            _texts(rows, column)

    def _training_texts(self) -> Iterator[str]:
        for name, source in self.sources.items():
            rows, numbers = self.rows(name, "train")
            for column in source.columns:
                for text in _texts(rows, column).take(numbers).to_pylist():
                    yield " ".join(text) if isinstance(text, list) else text


class TextSet:
    """One split of one data set of texts, tokenised.

    Args:
        split, numbers: the source's split and the rows that belong to this one.
        texts: what a person reads, one per example, for ids.
        encoded: one per example.
        targets: task → values of all rows of the source's split.
        tags: task → (numbers, offsets) of all rows of the source's split, one number per word.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        numbers: np.ndarray,
        texts: Blobs,
        encoded: Iterable[Encoded],
        targets: Mapping[str, np.ndarray],
        tags: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.name, self.tasks = name, (*targets, *tags)
        self.split, self.numbers = split, numbers
        self._texts, self._targets = texts, dict(targets)
        flat: list[np.ndarray] = []
        per_token: dict[str, list[np.ndarray]] = {task: [] for task in tags}
        for row, text in zip(numbers.tolist(), encoded, strict=True):
            flat.append(np.asarray(text.ids, dtype=np.int32))
            for task, (values, offsets) in tags.items():
                words = values[offsets[row] : offsets[row + 1]]
                per_token[task].append(_first_tokens(words, text.words, f"{name}/{split}/{row}", task))
        self._offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in flat])])
        self._ids = np.concatenate(flat)
        self._tags = {task: np.concatenate(parts) for task, parts in per_token.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Token numbers and attention mask (T,), and the labels that there are; texts are not augmented."""
        row = int(self.numbers[index])
        part = slice(self._offsets[index], self._offsets[index + 1])
        ids_T = self._ids[part].astype(np.int64)
        targets = targets_at(self._targets, row)
        for task, tags in self._tags.items():
            if (tags[part] != MISSING_INT).any():
                targets[task] = tags[part]
        return Example({"input_ids": ids_T, "attention_mask": np.ones_like(ids_T)}, targets, self._id(index, row))

    def _id(self, index: int, row: int) -> str:
        text = self._texts.text(index)
        return f'{self.name}/{self.split}/{row} "{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'


def _readable(columns: list[pa.Array]) -> pa.Array:
    """Words joined by spaces, pairs by a bar."""
    from pyarrow import compute, types

    lines = [
        c if types.is_string(c.type) or types.is_large_string(c.type) else compute.binary_join(c, " ") for c in columns
    ]
    return lines[0] if len(lines) == 1 else compute.binary_join_element_wise(*lines, " | ")


def _texts(rows: Rows, column: str) -> pa.Array:
    """A column of texts, or of lists of words.

    Raises:
        UserError: it holds something else, or an empty row.
    """
    from pyarrow import types

    values = rows.column(column).combine_chunks()
    kind = values.type.value_type if types.is_list(values.type) or types.is_large_list(values.type) else values.type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(
            f"data set '{rows.name}', column '{column}' holds {values.type}, not texts",
            f"name another: mixture.sources.{rows.name}.text; columns: {', '.join(rows.table.column_names)}",
        )
    if values.null_count:
        row = int(np.argmax(np.asarray(values.is_null())))
        raise UserError(
            f"data set '{rows.name}', column '{column}': row {row} of '{rows.split}' has no text "
            f"({values.null_count} of {len(values)} rows have none)",
            "write a text there, or take these rows out of the file",
        )
    return values


def _first_tokens(tags: np.ndarray, words: list[int | None] | None, where: str, task: str) -> np.ndarray:
    """The tag of every word at its first token, -100 at its other tokens and at special ones."""
    if words is None:
        raise UserError(f"task '{task}' tags words, but the text of {where} is not a list of words")
    seen = max((w for w in words if w is not None), default=-1)
    if len(tags) and seen >= len(tags):
        raise UserError(f"{where} has more words than tags for task '{task}': at least {seen + 1} and {len(tags)}")
    out = np.full(len(words), MISSING_INT, dtype=np.int64)
    before: int | None = None
    for position, word in enumerate(words):
        if word is not None and word != before and len(tags):
            out[position] = tags[word]
        before = word
    return out
