"""NYUv2 with three dense tasks from the Hugging Face hub: the images of the MTAN archive as parquet files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import Problem, UserError, first_line
from runner.mixtures import archive, hub_data, packed
from runner.mixtures.base import Annotation, check_tasks
from runner.mixtures.dense import Record, Source
from runner.mixtures.dense_archive import DenseArchive
from runner.mixtures.locate import locate, missing
from runner.mixtures.published import Published
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_normals

COLUMNS = {"segmentation": "segmentation", "depth": "depth", "normals": "normal"}
"""Annotation → its column."""

OFFERED = {
    "segmentation": Annotation("dense", "classification", 13),
    "depth": Annotation("dense", "regression"),
    "normals": Annotation("dense", "regression"),
}


class NYUv2Hub(DenseArchive):
    """One data set; tasks `segmentation` (13 classes), `depth`, `normals`, or some of them.

    Columns: image (3, H, W) in [0, 1], segmentation (H, W) with -1 unlabelled, depth (1, H, W) in metres with 0
    unknown, normal (3, H, W) with zeros unknown; splits train and val. They are read through `datasets`, which keeps
    one memory-mapped copy in its cache. Images are kept with 8 bits, which is what they were made from. The test split
    is the published val; validation is carved from train.

    Args:
        path: a folder with the hub's parquet files (train-*.parquet and val-*.parquet, in it or in its folder `data`).
        hub: the id on the hub, read where `path` is not there; null never asks the hub.
        size, fit, augment, validation, split_seed, partial: see `DenseArchive`.
    """

    option = "nyuv2_hub"
    what = "NYUv2 as the hub has it"
    marker = "train-*.parquet"
    unlabelled = -1
    offered = OFFERED
    published = Published(
        home="https://huggingface.co/datasets/tanganke/nyuv2",
        hub="tanganke/nyuv2",
        counts={"train": 795, "val": 654},
        ranges={"depth": (0.1, 10.5)},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        hub: str | None = "tanganke/nyuv2",
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        validation: PositiveInt | Fraction = 0.1,
        split_seed: int = 0,
        partial: bool = False,
    ) -> None:
        super().__init__(
            data_root,
            tasks=tasks,
            path=path,
            size=size,
            fit=fit,
            augment=augment,
            validation=validation,
            split_seed=split_seed,
            partial=partial,
        )
        self.hub = hub

    def check(self) -> list[Problem]:
        problems = check_tasks(self.tasks, self.annotations)
        try:
            root = locate(self.path, self.data_root, packed.MARKER)
            if root is not None and packed.covers(root, self.listed.values(), self.wanted):
                return problems
        except UserError as error:
            return problems + error.problems
        if self._files() or (self.hub and (not offline() or in_cache(self.hub))):
            return problems
        why = "the hub may not be asked (HF_HUB_OFFLINE)" if self.hub else "mixture.hub is null"
        get = f"{why}: unset that, or put the parquet files of {self.published.home} at one of these places"
        see = f"runner data prepare {self.option}"
        return [*problems, missing(self.what, self.path, self.data_root, get, marker=self.marker, see=see)]

    @cached_property
    def located(self) -> Path | None:
        """The folder of parquet files or of the packed form, None where there is neither."""
        packed_root = locate(self.path, self.data_root, packed.MARKER)
        return packed_root or (next(iter(self._files().values()))[0].parent if self._files() else None)

    def unpacked(self, listed: str, wanted: Sequence[str]) -> Source:
        """The rows of one published split."""
        return self.source(Path(self.path), listed, wanted)

    def folders(self, task: str) -> Sequence[str]:
        return ()

    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        layers = {
            "segmentation": Layer("classes", ClassDecoder(self.classes("segmentation"), unlabelled=(-1, 255))),
            "depth": Layer("depth", decode_depth),
            "normals": Layer("normals", decode_normals),
        }
        return {name: layers[name] for name in wanted}

    def open(self, listed: str, wanted: Sequence[str]) -> Source:
        root = locate(self.path, self.data_root, packed.MARKER)
        if root is not None and packed.covers(root, [listed], wanted):
            return packed.PackedSource(root / packed.FOLDER / listed, self.layers(wanted))
        return self.source(root or Path(self.path), listed, wanted)

    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        rows = self._load(listed)
        missing_columns = {"image", *(COLUMNS[name] for name in wanted)} - set(rows.column_names)
        if missing_columns:
            what = f"{self.what} has no column {', '.join(map(repr, sorted(missing_columns)))}"
            raise UserError(what, f"its columns are {', '.join(rows.column_names)}")
        return HubRows(rows, listed, self.layers(wanted), self.partial)

    def _files(self) -> dict[str, list[Path]]:
        """Published split → its parquet files; nothing where there are none."""
        for inside in ("", "data"):
            for listed in self.listed.values():
                root = locate(f"{self.path}/{inside}" if inside else self.path, self.data_root)
                if root is None or not sorted(root.glob(f"{listed}-*.parquet")):
                    break
            else:
                return {s: sorted(root.glob(f"{s}-*.parquet")) for s in self.listed.values()}
        return {}

    def _load(self, listed: str) -> Any:
        import datasets

        datasets.disable_progress_bars()
        files = self._files()
        try:
            if files:
                given = {s: [str(f) for f in parts] for s, parts in files.items()}
                return datasets.load_dataset("parquet", data_files=given, split=listed)
            if self.hub:
                return hub_data.load(self.hub, split=listed)
        except Exception as error:  # of several libraries: not found, offline, a file that is cut short
            where = next(iter(files.values()))[0].parent if files else f"'{self.hub}' on the hub"
            what = f"{self.what} cannot be read from {where}: {first_line(error)}"
            raise UserError(what, "check the network, or download the files again", "runner data list") from error
        raise UserError(self.check())


class HubRows:
    """The records of one published split.

    Args:
        rows: a `datasets.Dataset`, which travels to workers as a path. listed: its name, for ids.
        partial: whether a row may lack a map.
    """

    def __init__(self, rows: Any, listed: str, layers: Mapping[str, Layer], partial: bool) -> None:
        self.ids = [f"{listed}/{i}" for i in range(len(rows))]
        self.layers = layers
        self.partial = partial
        self._rows = rows.select_columns(["image", *(COLUMNS[name] for name in layers)]).with_format("numpy")

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        from PIL import Image

        row = self._rows[index]
        what = self.ids[index]
        image = _shaped(row["image"], 3, what)
        image = image if image.dtype == np.uint8 else archive.to_bytes(image, f"the image of {what}")
        maps = {}
        for name in wanted:
            stored = row[COLUMNS[name]]
            if stored is not None:
                maps[name] = _shaped(stored, 3, what) if name == "normals" else _flat(stored, what)
            elif not self.partial:
                raise UserError(f"{what} has no {COLUMNS[name]}", "mixture.partial=true accepts that")
        return Record(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), maps, what)


def _shaped(array: np.ndarray, channels: int, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[0] != channels:
        raise UserError(f"{what} holds an array of shape {array.shape}, not ({channels}, height, width)")
    return array


def _flat(array: np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise UserError(f"{what} holds an array of shape {array.shape}, not (height, width)")
    return array


def offline() -> bool:
    """Whether the environment forbids asking the hub."""
    yes = ("1", "on", "yes", "true")
    return any(os.environ.get(name, "").lower() in yes for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def in_cache(hub: str) -> bool:
    """Whether `datasets` has a data set of the hub in its cache."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    return (cache / hub.replace("/", "___")).is_dir()
