"""Pictures for tasks that are not dense: files, folders, or a column of a table, seen as evaluation sees them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from runner.errors import UserError
from runner.mixtures.base import Example, Mixture
from runner.mixtures.sources import IMAGES
from runner.predicting.reader import Item, Reader
from runner.predicting.request import Request
from runner.predicting.rows import check_columns, columns_of, read_rows


class ImageReader(Reader):
    """Pictures, decoded by a few threads.

    Args:
        size: (H, W) of training images.

    Raises:
        UserError: a file without a column of pictures.
    """

    noun = "picture"

    def __init__(self, mixture: Mixture, tasks: Sequence[str], request: Request, size: tuple[int, int]) -> None:
        self.mixture, self.request, self.size = mixture, request, size
        self.passes, self.left_out = {"picture": list(tasks)}, {}
        self._column = column_of(mixture, request) if request.file is not None else None
        self.columns = ["file"] if self._column is None else ["row", *request.keep]
        self._pool = ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))))

    def items(self) -> Iterator[Item]:
        if self._column is None:
            for path in pictures(Path(str(self.request.image)).expanduser()):
                yield Item(str(path), {"file": str(path)}, path)
            return
        for number, row in read_rows(self.request.file_path):
            item = Item(f"row {number}", {"row": number})
            if isinstance(row, str):
                item.errors.append(row)
            else:
                item.cells |= {column: row.get(column) for column in self.request.keep}
                item.content = self._opened(row.get(self._column), item)
            yield item

    def name(self, item: Item) -> str:
        if self.request.image is None:
            return item.where
        folder, path = Path(self.request.image).expanduser(), Path(item.where)
        return str(path.relative_to(folder)) if path != folder else path.name  # its end is what tells pictures apart

    def _opened(self, value: Any, item: Item) -> Any:
        """What PIL can open."""
        if isinstance(value, dict):  # as `datasets` writes it
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if isinstance(value, str) and value:
            return self.request.file_path.parent / value
        item.errors.append(f"column '{self._column}' has no picture")
        return None

    def prepare(self, items: Sequence[Item]) -> None:
        readable = [item for item in items if item.content is not None]
        for item, found in zip(readable, self._pool.map(self._decode, readable), strict=True):
            item.content = None  # bytes of a table are not needed any more
            if isinstance(found, str):
                item.errors.append(found)
            else:
                item.examples["picture"] = found

    def _decode(self, item: Item) -> Example | str:
        try:
            with Image.open(item.content) as image:
                return Example({"pixels": self.mixture.picture(image, self.size)})
        except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
            return f"it is not a picture that can be read: {_reason(error)}"


def _reason(error: Exception) -> str:
    return "of no known kind" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def pictures(place: Path) -> list[Path]:
    """The pictures that a file or a folder names, in order."""
    if not place.is_dir():
        return [place]
    return sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())


def column_of(mixture: Mixture, request: Request) -> str:
    """The column of a file that holds pictures: the one named by --columns, or that of a source of the mixture.

    Raises:
        UserError: there is none.
    """
    path, there = request.file_path, columns_of(request.file_path)
    check_columns(path, [*request.columns, *request.keep], "--columns" if request.columns else "--keep")
    sources = getattr(mixture, "sources", {}).values()
    named = dict.fromkeys(getattr(source, "image", "image") for source in sources) or {"image": None}
    found = next(iter([*request.columns, *(name for name in named if name in there)]), None)
    if found is None:
        what = f"--file: '{path}' has no column of pictures (looked for {', '.join(named)})"
        raise UserError(what, f"it has {', '.join(there)}; say which one: --columns NAME")
    return found
