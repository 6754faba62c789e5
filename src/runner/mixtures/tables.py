"""Tables: numbers and categories in, one or more labels per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from runner.config.kinds import Fraction, NonNegativeFloat, NonNegativeInt
from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Dataset, Example, Split
from runner.mixtures.from_sources import FromSources
from runner.mixtures.labels import MISSING_INT, targets_at
from runner.mixtures.rows import Rows
from runner.specs import InputSpec, fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = 0
"""Code of a category that the training split does not have, and of a missing one."""


@dataclass(frozen=True)
class Encoding:
    """What the training split says about the columns.

    Attributes:
        mean, std: (F,) float64 of the numeric columns, after the logarithm where one is taken.
        categories: column → category → code, from 1.
        types: categorical column → what it holds in Arrow's words: `07` is another category than `7` among texts, but
            the same among int64.
    """

    mean: np.ndarray
    std: np.ndarray
    categories: dict[str, dict[str, int]]
    types: dict[str, str] = field(default_factory=dict)


class Table(FromSources):
    """Rows of CSV, JSON lines or parquet, or of the hub; several sources must have the same columns.

    Numeric columns are standardised by the mean and standard deviation of the training rows; a missing number becomes
    the mean. Categories become codes, 0 for a missing one and for one that no training row has.

    Args:
        sources: data set → `Source`.
        numeric, categorical: columns to read; a column that holds a label may not be among them.
        log: numeric columns replaced by sign(x)·log(1 + |x|) first: for amounts, most of which are small.
        unknown: texts that mean "missing" in categorical columns, such as "?".
        label_noise: task → share of its training rows whose labels are shuffled among them: noise that keeps how
            frequent each label is. `split_seed` decides which.
        validation, test, split_seed, hub: see `FromSources`.
    """

    input_kind = "table"

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        sources: Mapping[str, Any],
        numeric: list[str],
        categorical: list[str],
        log: list[str] | None = None,
        unknown: list[str] | None = None,
        label_noise: dict[str, Fraction] | None = None,
        validation: NonNegativeFloat = 0.1,
        test: NonNegativeFloat | None = None,
        split_seed: NonNegativeInt = 0,
        hub: bool = False,
    ) -> None:
        super().__init__(
            data_root, tasks=tasks, sources=sources, validation=validation, test=test, split_seed=split_seed, hub=hub
        )
        self.numeric, self.categorical = list(numeric), list(categorical)
        self.log, self.unknown = set(log or []), set(unknown or [])
        self.label_noise = dict(label_noise or {})
        self._encoding: Encoding | None = None
        offered = {task for source in self.sources.values() for task in source.labels}
        for task in sorted(set(self.label_noise) - offered):  # of a task that this run leaves out, it is no mistake
            self._problems.append(Problem(f"unknown task 'mixture.label_noise.{task}'", suggest(task, offered)))
        if not self.numeric and not self.categorical:
            self._problems.append(Problem("'mixture.numeric' and 'mixture.categorical' are both empty"))
        for column in sorted(self.log - set(self.numeric)):
            self._problems.append(Problem(f"'mixture.log' names '{column}', which is not in mixture.numeric"))
        for column in sorted(set(self.numeric) & set(self.categorical)):
            self._problems.append(Problem(f"column '{column}' is in mixture.numeric and in mixture.categorical"))
        # Labels of tasks that this run leaves out as well: a single-task run must not see more than the joint one.
        for name, source in self.sources.items():
            for task, given in source.labels.items():
                named = [given] if isinstance(given, str) else [given.get("column"), *(given.get("columns") or [])]
                for column in sorted({*named} & {*self.numeric, *self.categorical}):
                    what = f"column '{column}' of data set '{name}' is the label of task '{task}' and also an input"
                    self._problems.append(Problem(what, "take it out of mixture.numeric and mixture.categorical"))

    def setup(self, pretrained: str | None) -> InputSpec:
        self.inspect()
        parts = [self.rows(name, "train") for name in self.sources]
        numbers_NF = np.concatenate([self._numbers(rows)[chosen] for rows, chosen in parts])
        counted_F = np.maximum(np.isfinite(numbers_NF).sum(0), 1)
        mean_F = np.nansum(numbers_NF, axis=0) / counted_F
        std_F = np.sqrt(np.nansum((numbers_NF - mean_F) ** 2, axis=0) / counted_F)
        categories = {}
        for column in self.categorical:
            seen = {value for rows, chosen in parts for value in _texts(rows, column).take(chosen).unique().to_pylist()}
            known = sorted(seen - self.unknown - {None})
            categories[column] = {value: code for code, value in enumerate(known, start=UNKNOWN + 1)}
        types = {column: str(parts[0][0].column(column).type) for column in self.categorical}
        self._encoding = Encoding(mean_F, np.where(std_F > 0, std_F, 1.0), categories, types)
        return InputSpec(
            "table",
            num_numeric=len(self.numeric),
            cardinalities=tuple(len(categories[column]) + 1 for column in self.categorical),
            learned=fingerprint([categories, *([f"{x:.6g}" for x in row] for row in (mean_F, std_F))]),
        )

    @property
    def encoding(self) -> Encoding:
        """What `setup` learned, or `restore` was given."""
        if self._encoding is None:
            raise RuntimeError("setup comes before datasets")
        return self._encoding

    def keep(self) -> dict[str, Any]:
        found = self.encoding
        return {"mean": found.mean.tolist(), "std": found.std.tolist()} | {
            "categories": found.categories,
            "types": found.types,
        }

    def restore(self, kept: Mapping[str, Any], pretrained: str | None) -> None:
        numbers = (np.asarray(kept[key], dtype=np.float64) for key in ("mean", "std"))
        self._encoding = Encoding(*numbers, kept["categories"], kept["types"])

    def encode(self, numbers: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str | None]]) -> list[Example]:
        """Rows that are in no data set, as the backbone reads those that are.

        Args:
            numbers: numeric column → (N,) float64, NaN for a missing one. texts: categorical column → N categories.
        """
        inputs: dict[str, np.ndarray] = {}
        if self.numeric:
            columns = [self._scaled(column, numbers[column]) for column in self.numeric]
            inputs["numeric"] = self._standardised(np.stack(columns, axis=1))
        if self.categorical:
            known = self.encoding.categories
            codes = [[known[c].get(text, UNKNOWN) if text is not None else UNKNOWN for text in texts[c]] for c in known]
            inputs["categorical"] = np.array(codes, dtype=np.int64).T
        count = len(next(iter(inputs.values())))
        return [Example({key: values[i] for key, values in inputs.items()}) for i in range(count)]

    @property
    def needed(self) -> list[str]:
        return list(self.sources)

    def dataset(self, name: str, split: Split) -> Dataset:
        encoding = self.encoding
        rows, chosen = self.rows(name, split)
        codes = [_codes(_texts(rows, c), encoding.categories[c]) for c in self.categorical]
        return TableSet(
            name,
            split=rows.split,
            numbers=chosen,
            numeric=self._standardised(self._numbers(rows)) if self.numeric else None,
            categorical=np.stack(codes, axis=1) if codes else None,
            targets=self._targets(name, rows, chosen if split == "train" else None),
        )

    def _targets(self, name: str, rows: Rows, training: np.ndarray | None) -> dict[str, np.ndarray]:
        """Targets of all rows, those of some `training` rows shuffled where `label_noise` says so."""
        targets = self.targets(name, rows)
        for task, share in self.label_noise.items() if training is not None else ():
            if task in targets:
                rng = np.random.default_rng([self._split_seed, crc32(f"{name}/{task}".encode())])
                there = training[[bool(np.all(~_missing(v))) for v in targets[task][training]]]
                picked = rng.permutation(there)[: round(share * len(there))]
                targets[task] = targets[task].copy()
                targets[task][picked] = targets[task][rng.permutation(picked)]
        return targets

    def inspect_inputs(self, name: str, rows: Rows) -> None:
        self._numbers(rows)
        for column in self.categorical:
            rows.column(column)

    def _numbers(self, rows: Rows) -> np.ndarray:
        """(N, F) float64 with NaN for missing values."""
        columns = [self._scaled(column, _floats(rows, column)) for column in self.numeric]
        return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))

    def _scaled(self, column: str, values: np.ndarray) -> np.ndarray:
        return np.sign(values) * np.log1p(np.abs(values)) if column in self.log else values

    def _standardised(self, numbers_NF: np.ndarray) -> np.ndarray:
        """(N, F) float32, the mean for missing values."""
        standard_NF = (numbers_NF - self.encoding.mean) / self.encoding.std
        return np.nan_to_num(standard_NF, nan=0.0).astype(np.float32)


class TableSet:
    """One split of one table.

    Args:
        split, numbers: the source's split and the rows that belong to this one.
        numeric: (N, F) float32, categorical: (N, C) int64, targets: task → (N, …), of all rows of the source's split.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        numbers: np.ndarray,
        numeric: np.ndarray | None,
        categorical: np.ndarray | None,
        targets: Mapping[str, np.ndarray],
    ) -> None:
        self.name, self.tasks = name, tuple(targets)
        self.split, self.numbers = split, numbers
        given = {"numeric": numeric, "categorical": categorical}
        self._inputs = {key: values for key, values in given.items() if values is not None}
        self._targets = dict(targets)

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """`numeric` (F,), `categorical` (C,) and the labels that there are; rows are not augmented."""
        row = int(self.numbers[index])
        inputs = {key: values[row] for key, values in self._inputs.items()}
        return Example(inputs, targets_at(self._targets, row), f"{self.name}/{self.split}/{row}")


def _missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else values == MISSING_INT


def _floats(rows: Rows, column: str) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import compute, types

    values = rows.column(column)
    if types.is_boolean(values.type):
        values = compute.cast(values, pa.int8())
    try:
        return np.asarray(compute.cast(values, pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"data set '{rows.name}', column '{column}' holds something that is not a number: {error}",
            "put it into mixture.categorical, or clean the file",
        ) from error


def _texts(rows: Rows, column: str) -> pa.Array:
    import pyarrow as pa
    from pyarrow import compute

    return compute.cast(rows.column(column), pa.string()).combine_chunks()


def _codes(values: pa.Array, known: Mapping[str, int]) -> np.ndarray:
    encoded = values.dictionary_encode()
    lookup = np.array(
        [known.get(value, UNKNOWN) for value in encoded.dictionary.to_pylist()] + [UNKNOWN], dtype=np.int64
    )
    return lookup[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
