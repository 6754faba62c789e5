"""Images with maps in folders of the user's own: segmentation masks, depth, normals, edges, any map with a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Dataset, Mixture, Split, carve
from runner.mixtures.dense import DenseDataset, Record, Source, parse_geometry, train_size
from runner.mixtures.dense_archive import Files
from runner.mixtures.folder_files import Listing, read_picture
from runner.mixtures.folder_maps import UNLABELLED, Map, parse_maps
from runner.mixtures.locate import locate, missing
from runner.mixtures.sources import SPLITS
from runner.specs import InputSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What folders and lists of a split are called; the first that is there is taken."""


class Folders(Mixture):
    """One data set of images, each with maps in files of the same name.

    Where files stand is said relative to `path`, with {split} for the name of a split and {} for the name of an image;
    without {} it is a folder, and any kind of image (or .npy) in it counts. Splits that are not there are carved.

    Args:
        path: the folder, see `runner.mixtures.locate`.
        images: where the images are.
        maps: task → where its maps are: such a place, or a mapping, see `runner.mixtures.folder_maps.MapKeys`.
        lists: a text file per split with the name of an image in each line, for images that share a folder; None finds
            the images of a split by {split} in `images`.
        splits: split → its name in {split}, null for "has none"; see `SPLIT_NAMES` for those left out.
        size: (H, W) of evaluation, and of training where `augment` has no `crop`.
        fit: "resize" stretches images to `size`; "pad" keeps their pixels and centres them in it.
        augment: keys of `runner.mixtures.augment.Augment`; None for none.
        validation, test: share or number of training images that are carved where there is no such split.
        split_seed: decides which.
        partial: accept images without some of the maps; they count as unlabelled for that task.
    """

    input_kind = "image"

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        images: str,
        maps: dict[str, Any],
        size: list[PositiveInt],
        lists: str | None = None,
        splits: dict[str, str | None] | None = None,
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        validation: NonNegativeFloat = 0.1,
        test: NonNegativeFloat | None = None,
        split_seed: int = 0,
        partial: bool = False,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.path, self.images, self.lists, self.fit, self.partial = path, images, lists, fit, partial
        self.size, self.augment = parse_geometry(size, augment)
        self._split_seed, self._splits = split_seed, dict(splits or {})
        self._shares: dict[Split, float | int | None] = {"validation": validation, "test": test}
        self.maps, self._problems = parse_maps(maps, self.tasks)
        for split in self._splits:
            if split not in SPLITS:
                self._problems.append(Problem(f"unknown key 'mixture.splits.{split}'", suggest(split, SPLITS)))
        if lists is not None and "{split}" not in lists:
            what = f"'mixture.lists' is {lists!r}: it needs {{split}} in place of the split's name"
            self._problems.append(Problem(what, 'such as "lists/{split}.txt"'))
        self._share: Map | None = None
        if self.augment is not None and self.augment.max_share < 1:
            self._share = self._class_map(maps)
        self._parts: dict[Split, tuple[Source, np.ndarray]] = {}

    def _class_map(self, maps: Mapping[str, Any]) -> Map | None:
        """What `augment.max_share` looks at: also where its task is left out, so that all runs see the same crops."""
        for task, keys in maps.items():
            if isinstance(keys, Mapping) and keys.get("kind") == "classes":
                named, problems = parse_maps({task: keys}, {task: self.tasks.get(task, {})})
                self._problems += [problem for problem in problems if problem not in self._problems]
                return named.get(task)
        what = "'mixture.augment.max_share' looks at a map of classes, and none of mixture.maps says that it is one"
        self._problems.append(
            Problem(what, 'say it: mixture.maps.segmentation={files: "{split}/masks", kind: classes}')
        )
        return None

    def check(self) -> list[Problem]:
        problems = list(self._problems)
        if self.located is None:
            get = "put your images there, or set mixture.path"
            return [*problems, missing("the folder of images", self.path, self.data_root, get, see="runner ls mixture")]
        if not problems:
            try:
                self._check_splits(self._found)
            except UserError as error:
                problems += error.problems
        return problems

    def setup(self, pretrained: str | None) -> InputSpec:
        for split in SPLITS if not self.check() else ():  # a dry run may go without data
            dataset = self.datasets(split)["folders"]
            dataset.example(0, None)  # one of each split: the kind of map, its classes, its size
        return InputSpec("image", size=train_size(self.size, self.augment))

    def datasets(self, split: Split) -> dict[str, Dataset]:
        source, indices = self._part(split)
        dataset = DenseDataset(
            "folders",
            list(self.tasks),
            source,
            indices,
            size=self.size,
            fit=self.fit,
            augment=self.augment if split == "train" else None,
            share_of=(self._share.task, UNLABELLED) if self._share is not None else None,
            device=self.augment.device if self.augment is not None else "auto",
        )
        return {dataset.name: dataset}

    @cached_property
    def located(self) -> Path | None:
        """The folder, None where it is not there."""
        return locate(self.path, self.data_root)

    def _part(self, split: Split) -> tuple[Source, np.ndarray]:
        """The records that hold a split, and which of them it is."""
        if problems := self.check():
            raise UserError(problems)
        if not self._parts:
            found = self._found
            train = self._source(found["train"])
            rest = np.arange(len(train.ids))
            for name in ("test", "validation"):  # so that another validation leaves the test set as it is
                if name in found:
                    source = self._source(found[name])
                    self._parts[name] = source, np.arange(len(source.ids))
                else:
                    kept, taken = carve(len(rest), self._shares[name] or 0, self._split_seed)
                    self._parts[name], rest = (train, rest[taken]), rest[kept]
            self._parts["train"] = train, rest
        return self._parts[split]

    @cached_property
    def _found(self) -> dict[Split, str]:
        """Split → its name in {split}, of those that are there; all is training data where nothing names splits."""
        assert self.located is not None
        place = self.lists or self.images
        if "{split}" not in place:
            return {"train": ""}
        found: dict[Split, str] = {}
        for split in SPLITS:
            named = self._splits.get(split, SPLIT_NAMES[split])
            for name in (named,) if isinstance(named, str) else named or ():
                if self._exists(place.replace("{split}", name)):
                    found[split] = name
                    break
            else:
                if isinstance(named, str):
                    where = f"mixture.splits.{split}={named}"
                    raise UserError(f"there is no {self.located / place.replace('{split}', named)} ({where})")
        return found

    def _exists(self, place: str) -> bool:
        assert self.located is not None
        inside = place if "{}" not in place else place.partition("{}")[0].rpartition("/")[0]
        return (self.located / inside).exists()

    def _check_splits(self, found: Iterable[Split]) -> None:
        place, key = (self.lists, "lists") if self.lists else (self.images, "images")
        if "train" not in found:
            what = f"{self.located} has no {place} for training (mixture.{key})"
            holds = ", ".join(sorted(p.name for p in self.located.iterdir())[:12]) if self.located else ""
            raise UserError(what, f"{{split}} may be {', '.join(SPLIT_NAMES['train'])}; the folder holds {holds}")
        if "test" not in found and self._shares["test"] is None:
            what = f"{self.located} has no {place} for testing (mixture.{key})"
            raise UserError(what, "carve one from train: mixture.test=0.2, or name it: mixture.splits.test=NAME")

    def _source(self, split: str) -> Files:
        """All records of one split of the folder.

        Raises:
            UserError: there is none, or some lack a map.
        """
        assert self.located is not None
        images, listing = self.images.replace("{split}", split), Listing(self.located)
        names = self._listed(split) if self.lists else listing.stems(images)
        files, lost = [], []
        for name in names:
            file = listing.file_of(images, name)
            files.append(file or "")
            lost += [] if file else [name]
        if lost:
            what = f"{len(lost)} of {len(names)} images of mixture.lists are not in {self.located / images}"
            raise UserError(f"{what}, such as {lost[0]}")
        wanted = dict(self.maps)
        if self._share is not None:
            wanted.setdefault(self._share.task, self._share)
        maps = {task: self._maps(found, split, names, listing) for task, found in wanted.items()}
        layers = {task: found.layer for task, found in wanted.items()}
        ids = [f"{split}/{name}" if split else name for name in names]
        return Pictures(self.located, ids, files, maps, layers, read_image=read_picture, read_map=_Reader(wanted))

    def _listed(self, split: str) -> list[str]:
        assert self.located is not None
        file = self.located / str(self.lists).replace("{split}", split)
        try:
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}", "it has the name of an image in each line") from error
        names = [str(Path(name).with_suffix("")) if Path(name).suffix else name for name in names if name]
        if not names:
            raise UserError(f"{file} names no image")
        return names

    def _maps(self, wanted: Map, split: str, names: Sequence[str], listing: Listing) -> list[str | None]:
        task, place = wanted.task, wanted.files.replace("{split}", split)
        found = [listing.file_of(place, name) for name in names]
        lost = [name for name, file in zip(names, found, strict=True) if file is None]
        if lost and (not self.partial or len(lost) == len(names)):
            hint = "" if len(lost) == len(names) else "; mixture.partial=true if these images have no such label"
            raise UserError(
                f"{len(lost)} of {len(names)} images have no map of task '{task}' in {listing.root / place}, such as "
                f"'{lost[0]}'",
                f"a map has the name of its image; say where they are: mixture.maps.{task}{hint}",
            )
        return found


class Pictures(Files):
    """Records whose maps must have the proportions of their image: another one, or one that was turned, is an error."""

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        record = super().read(index, wanted)
        width, height = record.image.size
        for task, stored in record.maps.items():
            rows, columns = stored.shape[-2:]
            if abs(rows * width - columns * height) > max(height, width):  # a row or column of rounding
                raise UserError(
                    f"the map of task '{task}' of '{record.id}' has {rows}x{columns} pixels (height x width), its "
                    f"image {height}x{width}: other proportions",
                    "was one of them cut or turned? Images are turned as their camera says (EXIF)",
                )
        return record


class _Reader:
    """Reads a map of any of the tasks; travels to workers."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = dict(maps)

    def __call__(self, name: str, file: Path) -> np.ndarray:
        return self._maps[name].read(file)
