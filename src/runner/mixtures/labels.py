"""Labels as a source's YAML names them, turned into targets.

    labels:
      digit: label                                      # a column
      income: {column: income, positive: ">50K"}        # yes-or-no from a text
      topic: {column: topic, classes: [arts, sport]}    # class numbers from texts, in this order
      toxicity: {columns: [insult, threat, obscene]}    # several yes-or-no columns
      emotions: {column: labels}                        # a list of class numbers per example, for a multi-label task
      score: {column: score, missing: -1}               # a value that stands for "no label"

What the values become is decided by the task: a class number, 0 or 1, a number, or one of these per label or token.
A null and an empty text are no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.config.source import bases, constant, define
from runner.errors import Problem, UserError, suggest
from runner.mixtures.sources import check_mapping

if TYPE_CHECKING:
    from runner.mixtures.rows import Rows

MISSING_INT = -100
Form = Literal["class", "multi_label", "binary", "number", "tags"]


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """What a mapping under `labels` may hold."""

    column: str | None = None
    columns: list[str] | None = None
    classes: list[Any] | None = None
    positive: str | int | float | bool | None = None
    missing: str | int | float | None = None


@dataclass(frozen=True)
class Label:
    """Where the labels of one task stand.

    Attributes:
        form: what they become.
        num_classes: of the task; 0 for binary and number.
    """

    task: str
    form: Form
    num_classes: int
    columns: tuple[str, ...]
    classes: tuple[Any, ...] | None = None
    positive: Any = None
    missing: Any = None


def form_of(task: Mapping[str, Any]) -> Form | None:
    """What kind of labels a task needs, read from its class's source; None for dense and unknown tasks."""
    target = str(task.get("_target_", ""))
    kind, loss_kind = constant(target, "kind"), constant(target, "loss_kind")
    if kind == "token":
        return "tags"
    if kind != "pooled":
        return None
    if loss_kind == "regression":
        return "number"
    if "num_classes" not in task:
        return "binary"
    return "multi_label" if "MultiLabel" in _ancestors(target) else "class"


def _ancestors(target: str) -> list[str]:
    return [cls.name for _, cls in bases(*define(target))]  # type: ignore[arg-type]


def parse_label(task: str, config: Mapping[str, Any], given: Any, where: str) -> tuple[Label | None, list[Problem]]:
    """The label of `task` as its source names it.

    Args:
        config: the task's. given: a column name or a mapping. where: the key, for messages.
    """
    form = form_of(config)
    if form is None:
        what = f"'mixture.tasks.{task}' needs a label per pixel, which this mixture does not have"
        return None, [Problem(what, "valid: tasks with a pooled or token head", "runner ls task")]
    spec = {"column": given} if isinstance(given, str) else given
    if not isinstance(spec, Mapping):
        return None, [Problem(f"'{where}' must be a column name or a mapping", "such as label or {column: label}")]
    problems = check_mapping(_Spec, where, spec)
    if problems:
        return None, problems
    found, num_classes = _Spec(**spec), config.get("num_classes", 0)
    if not isinstance(num_classes, int):
        return None, [Problem(f"'mixture.tasks.{task}.num_classes' must be the number of classes, not {num_classes!r}")]
    columns = found.columns or ([found.column] if found.column else [])
    set_classes = f"mixture.tasks.{task}.num_classes"
    if not columns:
        problems.append(Problem(f"'{where}' names no column", "such as {column: label}"))
    if found.columns and form != "multi_label":
        problems.append(Problem(f"'{where}.columns' needs a multi-label task, '{task}' is not one", "use column"))
    elif found.columns and len(columns) != num_classes:
        what = f"'{set_classes}' is {num_classes}, but '{where}.columns' names {len(columns)}"
        problems.append(Problem(what, f"set {set_classes}={len(columns)}"))
    if found.classes is not None and form in ("binary", "number"):
        problems.append(Problem(f"'{where}.classes' needs a task with classes, '{task}' is not one"))
    elif found.classes is not None and len(found.classes) != num_classes:
        what = f"'{set_classes}' is {num_classes}, but '{where}.classes' names {len(found.classes)}"
        problems.append(Problem(what, f"set {set_classes}={len(found.classes)}"))
    if found.positive is not None and form not in ("binary", "multi_label"):
        problems.append(Problem(f"'{where}.positive' needs a yes-or-no task, '{task}' is not one", "use classes"))
    if problems:
        return None, problems
    classes = tuple(found.classes) if found.classes is not None else None
    return Label(task, form, int(num_classes), tuple(columns), classes, found.positive, found.missing), []


def read_label(label: Label, rows: Rows, classes: Sequence[Any] | None = None) -> np.ndarray:
    """The targets of all rows, with -100 or NaN where there is no label.

    Args:
        classes: the classes of a column of texts whose `classes` are not given, see `class_names`.

    Returns:
        (N,) int64 for "class"; (N,) float32 for "binary" and "number"; (N, C) float32 for "multi_label".

    Raises:
        UserError: a column that is not there, or a value that the task cannot use, named with its row.
    """
    columns = [rows.column(column) for column in label.columns]
    if label.form == "multi_label" and _is_list(columns[0]):
        numbers, offsets = read_tags(label, rows, classes)
        out = np.full((len(rows), label.num_classes), np.nan, dtype=np.float32)
        out[np.asarray(columns[0].is_valid())] = 0.0
        out[np.repeat(np.arange(len(rows)), np.diff(offsets)), numbers] = 1.0
        return out
    for name, column in zip(label.columns, columns, strict=True):
        if _is_list(column):
            hint = f"task '{label.task}' needs one value per example: a multi-label or token task can use lists"
            raise UserError(f"data set '{rows.name}', column '{name}' holds lists", hint)
    if label.form in ("multi_label", "binary"):
        flags = [_convert(c, label, rows, _flag(label), np.float32) for c in columns]
        return np.stack(flags, axis=1) if label.form == "multi_label" else flags[0]
    if label.form == "number":
        return _convert(columns[0], label, rows, _number, np.float32)
    return _convert(columns[0], label, rows, _class_number(label, columns[0], classes), np.int64)


def read_tags(label: Label, rows: Rows, classes: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers of a column of lists, joined, and (N + 1,) offsets: row i has those from offsets[i] on."""
    column = rows.column(label.columns[0])
    if not _is_list(column):
        raise UserError(
            f"data set '{rows.name}', column '{label.columns[0]}' holds single values",
            f"task '{label.task}' needs a list per example",
        )
    lengths = column.combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = column.combine_chunks().flatten()
    return _convert(flat, label, rows, _class_number(label, flat, classes), np.int64, offsets), offsets


def class_names(label: Label, rows: Rows) -> list[Any] | None:
    """The classes of a column of texts in sorted order, from the training split; None for numbers and given classes."""
    import pyarrow as pa

    if label.classes is not None or label.form in ("binary", "number") or len(label.columns) != 1:
        return None
    column = rows.column(label.columns[0])
    flat = column.combine_chunks().flatten() if _is_list(column) else column
    if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        return None
    return sorted(value for value in flat.unique().to_pylist() if value and value != label.missing)


def check_positive(label: Label, rows: Rows) -> None:
    """Refuse a `positive` value that no training example has: a typing error would train on zeros only.

    Raises:
        UserError: with the values that are there.
    """
    if label.positive is None or len(label.columns) != 1:
        return
    values = rows.column(label.columns[0]).unique().to_pylist()
    if label.positive not in values:
        raise UserError(
            f"data set '{rows.name}', column '{label.columns[0]}': no row of '{rows.split}' is {label.positive!r}, the "
            f"positive value of task '{label.task}'",
            suggest(str(label.positive), map(str, values)),
        )


def targets_at(targets: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """The targets of one row; a task without a label there has no key."""
    found = {}
    for task, values in targets.items():
        value = np.asarray(values[row])
        if not (np.isnan(value).all() if value.dtype.kind == "f" else value == MISSING_INT):
            found[task] = value
    return found


class _Unusable(Exception):
    """A value that is no label; the message says what would be."""


def _convert(
    column: Any,
    label: Label,
    rows: Rows,
    convert: Callable[[Any], float],
    dtype: type,
    offsets: np.ndarray | None = None,
) -> np.ndarray:
    """Every value through `convert`, called once per distinct value."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    encoded = array.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    missing = MISSING_INT if dtype is np.int64 else np.nan
    table = np.full(len(encoded.dictionary) + 1, missing, dtype=dtype)  # the last entry is for code -1
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        if value == label.missing or value == "" or value != value:  # NaN and "" are how others write nothing
            continue
        try:
            table[code] = convert(value)
        except _Unusable as error:
            position = int(np.argmax(codes == code))
            row = position if offsets is None else int(np.searchsorted(offsets, position, side="right")) - 1
            raise UserError(
                f"data set '{rows.name}', column '{', '.join(label.columns)}': {value!r} in row {row} of "
                f"'{rows.split}' is no label of task '{label.task}'",
                str(error),
            ) from None
    return table[codes]


def _class_number(label: Label, column: Any, classes: Sequence[Any] | None) -> Callable[[Any], int]:
    """Names or numbers → class numbers, refusing those outside the task's classes."""
    from pyarrow import compute, types

    names = label.classes if label.classes is not None else classes
    place = {name: i for i, name in enumerate(names)} if names is not None else None
    total = len(names) if names is not None else 0
    if names is None and (types.is_integer(column.type) or types.is_floating(column.type)) and len(column):
        total = int(compute.max(column).as_py() or 0) + 1

    def convert(value: Any) -> int:
        number = value if place is None else place.get(value)
        if number is None:
            hint = suggest(str(value), map(str, names or []))
            if label.classes is None and len(names or ()) < label.num_classes:
                hint += f"; these are all that 'train' has, name the rest: {{column: {label.columns[0]}, classes: […]}}"
            raise _Unusable(hint)
        if not isinstance(number, int | float) or number != int(number) or number < 0:
            raise _Unusable(
                f"class numbers are 0…{label.num_classes - 1}; if it means no label: "
                f"{{column: {label.columns[0]}, missing: {value!r}}}"
            )
        if number >= label.num_classes:
            raise _Unusable(f"the data has {total} classes: set mixture.tasks.{label.task}.num_classes={total}")
        return int(number)

    return convert


def _flag(label: Label) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if label.positive is not None:
            return float(value == label.positive)
        if value in (0, 1):  # also False and True
            return float(value)
        raise _Unusable("yes or no is 1 or 0; name the value that means yes: {column: …, positive: VALUE}")

    return convert


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise _Unusable("a regression label is a number")
    return float(value)


def _is_list(column: Any) -> bool:
    from pyarrow import types

    return types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
