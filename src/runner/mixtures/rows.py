"""Opening the files of a source as Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import UserError, first_line, suggest
from runner.mixtures import hub_data
from runner.mixtures.sources import IMAGES, Source, check_splits, local_files

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY_BYTES = 256 * 2**20
"""Local files up to this size are read into memory. Larger parquet files go through `datasets`, which keeps a
memory-mapped copy in the user's cache, so that all workers share one; small ones would only pay for the copy."""

NULLS = ["", "NA", "NaN", "nan", "null"]
"""What means "nothing" among the numbers of a CSV; among texts only the empty one does."""


@dataclass
class Rows:
    """One split of a source.

    Attributes:
        name: of the data set, and split: of the source; for messages and ids.
        table: the columns.
        folder: where its files lie; paths in a column of texts are relative to it.
        mapped: the same rows as a `datasets.Dataset`, where they are memory-mapped rather than in memory: it travels
            to a worker as a path.
    """

    name: str
    split: str
    table: pa.Table
    folder: Path | None = None
    mapped: Any = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, column: str) -> pa.ChunkedArray:
        """A column by name.

        Raises:
            UserError: there is none of that name.
        """
        if column not in self.table.column_names:
            raise UserError(
                f"data set '{self.name}' has no column '{column}' in its split '{self.split}'",
                suggest(column, self.table.column_names),
            )
        return self.table.column(column)


@dataclass
class Opened:
    """A source whose splits are known and opened when asked for.

    Attributes:
        files: source split → files or folder; empty for the hub.
    """

    name: str
    source: Source
    files: dict[str, list[Path]]
    rows: dict[str, Rows] = field(default_factory=dict)
    kept: dict[str, Rows] = field(default_factory=dict)

    def split(self, split: str) -> Rows:
        """The rows of one of the source's splits, without those that `only` leaves out."""
        if split not in self.rows:
            self.rows[split] = _read(self.name, split, self.files[split])
        if split not in self.kept:
            self.kept[split] = only(self.rows[split], self.source.only or {})
        return self.kept[split]

    @property
    def splits(self) -> list[str]:
        """The source's names of its splits."""
        return list(self.files or self.rows)


def only(rows: Rows, wanted: Mapping[str, Sequence[Any]]) -> Rows:
    """The rows whose columns have one of the wanted values.

    Raises:
        UserError: a column that is not there, a value that no row has, or no row with all of them.
    """
    if not wanted:
        return rows
    import pyarrow as pa
    from pyarrow import compute

    mask = pa.chunked_array([pa.array(np.ones(len(rows), dtype=bool))])
    for column, values in wanted.items():
        found = rows.column(column)
        there = set(found.unique().to_pylist())
        if missing := [value for value in values if value not in there]:
            raise UserError(
                f"data set '{rows.name}': no row of '{rows.split}' has {missing[0]!r} in column '{column}' "
                f"(mixture.sources.{rows.name}.only.{column})",
                suggest(str(missing[0]), map(str, there)),
            )
        mask = compute.and_(mask, compute.is_in(found, value_set=pa.array(list(values), type=found.type)))
    numbers = np.flatnonzero(mask.to_numpy())
    if not len(numbers):
        raise UserError(f"data set '{rows.name}': 'mixture.sources.{rows.name}.only' leaves no row of '{rows.split}'")
    mapped = rows.mapped.select(numbers) if rows.mapped is not None else None
    return Rows(rows.name, rows.split, rows.table.take(numbers), rows.folder, mapped)


def open_source(source: Source, name: str, data_root: str, test: float | int | None) -> Opened:
    """Find the splits of a source; a hub id is downloaded into the user's cache (or read from there).

    Args:
        test: the mixture's `test`: what to carve where there is no test split.

    Raises:
        UserError: it is not there, or lacks a split.
    """
    if source.path is not None:
        opened = Opened(name, source, local_files(source, name, data_root))
    else:
        opened = Opened(name, source, {}, _from_hub(source, name))
    problems = check_splits(source, name, dict.fromkeys(opened.splits), test)
    if problems:
        raise UserError(problems)
    return opened


def _read(name: str, split: str, files: Sequence[Path]) -> Rows:
    import pyarrow as pa

    if files[0].is_dir():
        return Rows(name, split, _image_folder(files[0]), files[0])
    size = sum(file.stat().st_size for file in files)
    if size > IN_MEMORY_BYTES and all(file.suffix == ".parquet" for file in files):
        return _mapped(name, split, files)
    tables = [_table(name, file) for file in files]
    try:
        return Rows(name, split, pa.concat_tables(tables, promote_options="default"), files[0].parent)
    except pa.ArrowException as error:
        raise UserError(f"data set '{name}': the files of '{split}' do not have the same columns: {error}") from error


def _table(name: str, file: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if file.suffix == ".parquet":
            return parquet.read_table(file)
        if file.suffix in (".json", ".jsonl"):
            return _json(file)
        if file.suffix in (".csv", ".tsv"):
            return _csv(name, file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"data set '{name}': {file} cannot be read: {error}") from error
    raise UserError(f"data set '{name}': {file} is of an unknown kind", "valid: .parquet, .csv, .tsv, .json, .jsonl")


def _json(file: Path) -> pa.Table:
    """A value per line, or one list of all of them."""
    import json

    import pyarrow as pa
    from pyarrow import json as lines

    with open(file, "rb") as stream:
        start = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        return lines.read_json(file)
    listed = json.loads(file.read_text(encoding="utf-8-sig"))
    if not all(isinstance(row, dict) for row in listed):
        raise ValueError("its list must hold {column: value} only")
    columns = dict.fromkeys(key for row in listed for key in row)
    return pa.table({column: pa.array([row.get(column) for row in listed]) for column in columns})


def _csv(name: str, file: Path) -> pa.Table:
    """Comma-separated, by semicolons or tabs where the header has those and no comma.

    Raises:
        UserError: it is not in UTF-8, or names a column twice.
    """
    import pyarrow as pa
    from pyarrow import csv

    with open(file, "rb") as stream:
        header = stream.readline()
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _not_utf8(name, file, "utf-16")
    delimiter = delimiter_of(header, file.suffix)
    table = csv.read_csv(
        file,
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(strings_can_be_null=True, null_values=NULLS),
    )
    if any(pa.types.is_binary(column.type) for column in table.columns):  # how the reader takes other encodings
        raise _not_utf8(name, file, "latin1")
    names = [column.strip() for column in table.column_names]
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise UserError(f"data set '{name}': {file} has {len(twice)} columns twice: {', '.join(twice)}", "rename them")
    return _trimmed(table)


def delimiter_of(header: bytes, suffix: str) -> str:
    """What separates the columns of a CSV: a comma (of .tsv a tab), or a semicolon or tab where the header has none."""
    usual = "\t" if suffix == ".tsv" else ","
    if usual.encode() in header:
        return usual
    return next((other for other in (";", "\t") if other.encode() in header), usual)


def _not_utf8(name: str, file: Path, probably: str) -> UserError:
    return UserError(
        f"data set '{name}': {file} is not in UTF-8",
        f"if it is in {probably}: iconv -f {probably} -t utf-8 {file} > {file.stem}-utf8{file.suffix}",
    )


def _trimmed(table: pa.Table) -> pa.Table:
    """CSV written with `, ` between values: names, texts and numbers without the spaces around them."""
    import pyarrow as pa

    columns = [_trimmed_column(c) if pa.types.is_string(c.type) else c for c in table.columns]
    return pa.table(columns, names=[name.strip() for name in table.column_names])


def _trimmed_column(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    from pyarrow import compute

    trimmed = compute.utf8_trim_whitespace(texts)
    filled = compute.if_else(compute.equal(trimmed, ""), None, trimmed)
    if trimmed.equals(texts):
        return filled
    for kind in (pa.int64(), pa.float64()):  # a space made the reader take numbers for texts
        try:
            return compute.cast(filled, kind)
        except pa.ArrowInvalid:
            continue
    return filled


def _image_folder(folder: Path) -> pa.Table:
    """Columns `image` (path) and `label` (name of the class folder), both in sorted order."""
    import pyarrow as pa

    files = [
        (image, kind.name)
        for kind in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        for image in sorted(kind.rglob("*"))
        if image.suffix.lower() in IMAGES
    ]
    encoded = pa.array(
        [{"bytes": None, "path": str(f)} for f, _ in files], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    return pa.table({"image": encoded, "label": pa.array([kind for _, kind in files], pa.string())})


def _mapped(name: str, split: str, files: Sequence[Path]) -> Rows:
    loaded = _library().load_dataset("parquet", data_files={"train": [str(f) for f in files]}, split="train")
    return Rows(name, split, loaded.data.table, files[0].parent, loaded)


def _from_hub(source: Source, name: str) -> dict[str, Rows]:
    try:
        loaded = hub_data.load(str(source.hub), source.subset, revision=source.revision)
    except Exception as error:  # of several libraries: not found, offline, gated, unknown subset, a loading script
        raise UserError(
            f"data set '{name}': '{source.hub}' cannot be read from the Hugging Face hub: {first_line(error)}",
            f"check the id and the network, or set mixture.sources.{name}.path to a local copy",
        ) from error
    return {split: Rows(name, split, part.data.table, None, part) for split, part in loaded.items()}


def _library() -> Any:
    """Hugging Face `datasets`, imported when it is needed (it takes most of a second), and quiet."""
    import datasets

    datasets.disable_progress_bars()
    return datasets
