"""Rows of a person's file one at a time, whatever its size, read as training reads its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from runner.errors import UserError, suggest
from runner.mixtures.rows import NULLS, delimiter_of

KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
TEXT = "text"
"""The one column of a .txt file."""

_LOOKED_AT = 100
"""Rows of JSON lines that say which columns there are."""

Row = dict[str, Any] | str
"""Column → value, None for a missing one; or what is wrong with the row."""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) for every row of a file; in a .txt file numbers count lines, and empty ones are passed over.

    Only a .json file that is one list is read as a whole.

    Raises:
        UserError: it cannot be read.
    """
    try:
        yield from _READ[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        with open(path, "rb") as file:
            probably = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        again = f"iconv -f {probably} -t utf-8 {path} > {path.stem}-utf8{path.suffix}"
        raise UserError(f"{path} is not in UTF-8", f"if it is in {probably}: {again}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def columns_of(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        UserError: it is no file of rows, is empty, or cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"--file: '{path}' is of an unknown kind", f"valid: {', '.join(KINDS)}")
    if not path.stat().st_size:
        raise UserError(f"--file: '{path}' is empty")
    if kind in (".csv", ".tsv"):
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                return _header(path, file.readline())
        except (UnicodeDecodeError, OSError):
            next(read_rows(path))  # says what it is
            raise
    first = list(islice(read_rows(path), _LOOKED_AT))
    if not first:
        raise UserError(f"--file: '{path}' has no rows")
    columns = dict.fromkeys(column for _, row in first if isinstance(row, dict) for column in row)
    if not columns:
        raise UserError(f"--file: '{path}' has no readable row: {first[0][1]}")
    return list(columns)


def check_columns(path: Path, wanted: list[str], flag: str) -> None:
    """Refuse columns that a file does not have.

    Raises:
        UserError: naming all of them.
    """
    there = columns_of(path)
    if lost := [column for column in wanted if column not in there]:
        plural = "columns" if len(lost) > 1 else "column"
        named = ", ".join(f"'{column}'" for column in lost)
        raise UserError(f"{flag}: '{path}' has no {plural} {named}", suggest(lost[0], there))


# ---- one kind of file each -------------------------------------------------------------------------------------------


def _header(path: Path, line: str) -> list[str]:
    delimiter = delimiter_of(line.encode(), path.suffix.lower())
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    if not any(names):
        raise UserError(f"--file: '{path}' has no header: its first line must name the columns")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--file: '{path}' has {len(twice)} columns twice: {', '.join(twice)}", "rename them")
    return names


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the library's 128 kB
    with open(path, encoding="utf-8-sig", newline="") as file:
        line = file.readline()
        names = _header(path, line)
        number = 0
        for values in csv.reader(file, delimiter=delimiter_of(line.encode(), path.suffix.lower())):
            if not values:
                continue
            number += 1
            if len(values) == len(names):
                yield number, {name: _value(text) for name, text in zip(names, values, strict=True)}
            else:
                yield number, f"it has {len(values)} values, and the header {len(names)}"


def _value(text: str) -> str | None:
    return None if text in NULLS else text.strip() or None


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8-sig") as file:
        number = 0
        for line in file:
            if line.strip():
                number += 1
                yield number, _parsed(line)


def _parsed(line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"it is not JSON: {error}"
    return row if isinstance(row, dict) else "it is not an object {column: value}"


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(64).lstrip()
    if not start.startswith("["):
        yield from _lines(path)
        return
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8-sig")), start=1):
        yield number, row if isinstance(row, dict) else "it is not an object {column: value}"


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    from pyarrow import parquet

    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _text(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, {TEXT: line.rstrip("\r\n")}


_READ = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _lines, ".parquet": _parquet, ".txt": _text}
