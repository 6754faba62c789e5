"""The encoded images of a data set's rows, in memory or in files."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Protocol

from runner.errors import UserError
from runner.mixtures.blobs import Blobs
from runner.mixtures.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa


class Encoded(Protocol):
    """Images of a table, still encoded, in a form that travels to workers."""

    def open(self, row: int) -> str | io.BytesIO:
        """What PIL can open."""


class InMemory:
    """Images that are in memory, and paths of those that are not.

    Args:
        column: an Arrow array of {bytes, path}, of bytes, or of paths.
        folder: what paths are relative to.
    """

    def __init__(self, column: pa.Array, folder: str | None) -> None:
        from pyarrow import types

        contents, paths = None, None
        if types.is_struct(column.type):
            # flatten, unlike field, gives the fields of a null as nulls
            fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
            contents, paths = fields.get("bytes"), fields.get("path")
        elif types.is_string(column.type) or types.is_large_string(column.type):
            paths = column
        else:
            contents = column
        self._folder = folder
        self._contents = Blobs(contents) if contents is not None and contents.null_count < len(contents) else None
        elsewhere = self._contents is None or (contents is not None and contents.null_count > 0)
        self._paths = Blobs(paths) if paths is not None and elsewhere else None

    def open(self, row: int) -> str | io.BytesIO:
        """What PIL can open."""
        if self._contents is not None and (content := self._contents[row]):
            return io.BytesIO(content)
        path = self._path(row)
        if not path:
            raise ValueError("there is none")
        return path

    def lost(self) -> list[str]:
        """The files of those images that are neither in memory nor on disk; every folder is looked into once."""
        inside: dict[str, frozenset[str]] = {}
        gone = []
        for row in range(len(self._paths) if self._paths is not None else 0):
            if self._contents is not None and self._contents[row]:
                continue
            path = self._path(row)
            folder, name = os.path.split(path)
            if folder not in inside:
                inside[folder] = frozenset(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else frozenset()
            if name not in inside[folder]:
                gone.append(path or f"the one of row {row}, which names none")
        return gone

    def _path(self, row: int) -> str:
        path = self._paths.text(row) if self._paths is not None else ""
        return f"{self._folder}/{path}" if path and self._folder and not path.startswith("/") else path


class Mapped:
    """Images of a memory-mapped table.

    Args:
        dataset: a `datasets.Dataset`. column: its column of images.
    """

    def __init__(self, dataset: Any, column: str) -> None:
        import datasets

        self._column = column
        self._dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def open(self, row: int) -> str | io.BytesIO:
        """What PIL can open."""
        value = self._dataset[row][self._column]
        if value is None:
            raise ValueError("there is none")
        return io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]


def open_images(rows: Rows, column: str) -> Encoded:
    """The encoded images of a table.

    Raises:
        UserError: no such column, or a column that holds something else.
    """
    from pyarrow import types

    values = rows.column(column)
    kind = values.type
    tests = (types.is_struct, types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    if not any(test(kind) for test in tests):
        raise UserError(
            f"data set '{rows.name}', column '{column}' holds {kind}, not images",
            f"name another: mixture.sources.{rows.name}.image; columns: {', '.join(rows.table.column_names)}",
        )
    if rows.mapped is not None:
        return Mapped(rows.mapped, column)
    return InMemory(values.combine_chunks(), str(rows.folder) if rows.folder is not None else None)
