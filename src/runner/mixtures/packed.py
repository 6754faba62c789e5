"""Dense archives in a form that needs no decoding: one file of raw values per kind of map, mapped into memory.

    packed/index.json                 what there is: version, and per published split its annotations and their types
    packed/SPLIT/ids.txt              one id a line
    packed/SPLIT/image.bin            RGB bytes of all images, one after the other
    packed/SPLIT/image.npy            (N, 1 + dimensions): where each begins, in values, and its shape; -1 for none
    packed/SPLIT/ANNOTATION.{bin,npy} the same for stored maps, before they become targets

All workers share one copy in the page cache. `runner data prepare` writes it, once.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runner.errors import UserError
from runner.files import write_json
from runner.mixtures.dense import Record, Source
from runner.mixtures.views import Layer

FOLDER = "packed"
MARKER = f"{FOLDER}/index.json"
VERSION = 1
IMAGE = "image"


class Records(Source, Protocol):
    """A source that knows how many records it has."""

    ids: Sequence[str]


def covers(root: Path, listed: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether a packed form lies in an archive's folder that has these splits with these annotations."""
    splits = read_index(root)
    return bool(splits) and all(name in splits and set(wanted) <= set(splits[name]) for name in listed)


def read_index(root: Path) -> dict[str, dict[str, str]]:
    """Published split → annotation → its type; nothing where there is no packed form.

    Raises:
        UserError: the index cannot be read, or is of a later version.
    """
    path = root / MARKER
    return _read_index(path, path.stat().st_mtime_ns) if path.is_file() else {}


@cache
def _read_index(path: Path, _: int) -> dict[str, dict[str, str]]:
    again = f"remove {path.parent}, and run: runner data prepare"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version, splits = index["version"], index["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}", again) from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version}, this runner reads {VERSION}", again)
    return splits


class PackedSource:
    """The records of one published split.

    Args:
        folder: packed/SPLIT. layers: annotation → how its stored map becomes a target.
    """

    def __init__(self, folder: Path, layers: Mapping[str, Layer]) -> None:
        self.folder = folder
        self.layers = layers
        self.ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
        self._types = {IMAGE: "|u1", **read_index(folder.parents[1])[folder.name]}
        self._open: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # every worker maps the files itself

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        from PIL import Image

        image = self._values(IMAGE, index)
        assert image is not None
        maps = {name: stored for name in wanted if (stored := self._values(name, index)) is not None}
        return Record(Image.fromarray(image), maps, self.ids[index])

    def _values(self, name: str, index: int) -> np.ndarray | None:
        if name not in self._open:
            try:
                places = np.load(self.folder / f"{name}.npy", allow_pickle=False)
                # An empty file cannot be mapped: a split in which no record has such a map
                empty = (self.folder / f"{name}.bin").stat().st_size == 0
                values = np.empty(0) if empty else np.memmap(self.folder / f"{name}.bin", self._types[name], "r")
            except (OSError, ValueError) as error:
                again = f"remove {self.folder.parent}, and run: runner data prepare"
                raise UserError(f"cannot read {self.folder / name}: {error}", again) from error
            self._open[name] = places, values
        places, values = self._open[name]
        start, *shape = places[index].tolist()
        if start < 0:
            return None
        part = values[start : start + int(np.prod(shape))]
        if part.size != np.prod(shape):
            again = f"remove {self.folder.parent}, and run: runner data prepare"
            raise UserError(f"{self.folder / name}.bin ends before record {index}", again)
        return np.asarray(part).reshape(shape)


def pack(
    root: Path, splits: Mapping[str, Records], annotations: Sequence[str], progress: Callable[[str, int, int], None]
) -> Path:
    """Write the packed form of an archive into its folder; what was there before is replaced at the end.

    Args:
        splits: published split → its records. progress: told the split, how many records are done, and of how many.

    Returns:
        The folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{FOLDER}.{uuid.uuid4().hex[:8]}"
    try:
        index: dict[str, dict[str, str]] = {}
        for listed, records in splits.items():
            index[listed] = _write(temporary / listed, records, annotations, lambda i, n, s=listed: progress(s, i, n))
        write_json(temporary / "index.json", {"version": VERSION, "splits": index})
        target = root / FOLDER
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write(
    folder: Path, records: Records, annotations: Sequence[str], progress: Callable[[int, int], None]
) -> dict[str, str]:
    """One split; the type of each annotation's values."""
    folder.mkdir(parents=True)
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in records.ids), encoding="utf-8")
    names = [IMAGE, *annotations]
    types: dict[str, np.dtype] = {}
    places: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    lengths = dict.fromkeys(names, 0)
    files = {name: open(folder / f"{name}.bin", "wb") for name in names}  # noqa: SIM115  # closed below, all together
    try:
        for i, name in enumerate(records.ids):
            record = records.read(i, annotations)
            for kind, values in {IMAGE: np.asarray(record.image), **record.maps}.items():
                values = compact(values, records.layers[kind].kind if kind != IMAGE else "")
                if types.setdefault(kind, values.dtype) != values.dtype:
                    what = f"'{name}' stores {kind} as {values.dtype}, those before it as {types[kind]}"
                    raise UserError(what, "the archive mixes types: read it as it is, without preparing it")
                places[kind].append((lengths[kind], *values.shape))
                lengths[kind] += values.size
                files[kind].write(np.ascontiguousarray(values).data)
            for kind in {IMAGE, *annotations} - {IMAGE, *record.maps}:
                places[kind].append((-1,))
            progress(i + 1, len(records.ids))
    finally:
        for file in files.values():
            file.close()
    for kind, rows in places.items():
        width = max(len(row) for row in rows)
        np.save(folder / f"{kind}.npy", np.array([(*row, *[-1] * (width - len(row))) for row in rows], np.int64))
    return {kind: types.get(kind, np.dtype(np.uint8)).str for kind in annotations}


def compact(values: np.ndarray, kind: str) -> np.ndarray:
    """The same values in fewer bytes: whole numbers of class maps as int16, 64-bit floats as 32-bit ones.

    Both are what becoming a target would make of them.
    """
    if kind == "classes" and values.dtype != np.uint8:
        whole = values.astype(np.int64)
        if np.abs(whole).max(initial=0) > np.iinfo(np.int16).max:
            raise UserError(
                f"a class map holds {int(np.abs(whole).max())}: that is no class", "unpack the archive again"
            )
        return whole.astype(np.int16)
    return values.astype(np.float32) if values.dtype == np.float64 else values
