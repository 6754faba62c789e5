"""What mixtures of published dense archives share: keys, finding the archive, splits, and records made of files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import Problem, UserError
from runner.files import size_in_words
from runner.mixtures import archive, packed
from runner.mixtures.base import Annotation, Dataset, Mixture, Split, carve, check_tasks
from runner.mixtures.dense import DenseDataset, Record, Source, parse_geometry, train_size
from runner.mixtures.locate import locate
from runner.mixtures.published import Progress, Published
from runner.mixtures.views import Layer
from runner.specs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class DenseArchive(Mixture):
    """One data set of images with maps; a task uses the map of its own name, and a run may train some of them.

    A subclass says what the archive is by the class attributes, which of its folders a task needs (`folders`), and how
    the records of one published split are read (`source`). Where `runner data prepare` has packed the archive, the
    packed form is read instead: the same records to the last bit, without decoding.

    Args:
        path: the archive's folder, see `runner.mixtures.locate`.
        size: (H, W) of evaluation, and of training where `augment` has no `crop`.
        fit: "resize" stretches images to `size`; "pad" keeps their pixels and centres them in it.
        augment: keys of `runner.mixtures.augment.Augment`; None for none.
        validation: share or number of training images that are held out. split_seed: decides which. Archives with a
            validation split of their own do not have these two.
        partial: accept images without some of the maps; they count as unlabelled for that task.

    Attributes:
        option: its file in configs/mixture, and the name of its data set.
        what: names the archive in messages. marker: a file or folder in it by which it is recognised.
        offered: annotation → what it is.
        published: what was published, for `runner data`.
        listed: split → name of the published one; one that is not there is carved from train.
        unlabelled: the stored value of the segmentation that is no class, for `augment.max_share`.
        script: what a script under `data_root` calls this layout, see `runner.mixtures.archive.SCRIPT`; "" for none.
    """

    input_kind = "image"
    option: ClassVar[str]
    what: ClassVar[str]
    marker: ClassVar[str]
    offered: ClassVar[Mapping[str, Annotation]]
    published: ClassVar[Published]
    listed: ClassVar[Mapping[Split, str]] = {"train": "train", "test": "val"}
    unlabelled: ClassVar[int] = 255
    script: ClassVar[str] = ""

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        validation: PositiveInt | Fraction = 0.1,
        split_seed: int = 0,
        partial: bool = False,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.path = path
        self.size, self.augment = parse_geometry(size, augment)
        self.fit = fit
        self.validation = validation
        self.split_seed = split_seed
        self.partial = partial

    @abstractmethod
    def folders(self, task: str) -> Sequence[str]:
        """Folders in the archive that a task needs, "" for what every task needs; "a|b" for either of two."""

    @abstractmethod
    def source(self, root: Path, listed: str, wanted: Sequence[str]) -> Source:
        """The records of one published split, with the maps of the annotations in `wanted`.

        Raises:
            UserError: everything that the archive lacks.
        """

    def check(self) -> list[Problem]:
        problems = check_tasks(self.tasks, self.annotations)
        root = self.located
        if root is None:
            return [*problems, archive.missing_archive(self)]
        wanted = [name for name in self.wanted if name in self.offered]
        try:
            there = packed.covers(root, self.listed.values(), wanted)
        except UserError as error:
            return problems + error.problems
        if not there:
            problems += archive.lacking_folders(
                self.what, self.option, root, {t: self.folders(t) for t in ["", *wanted]}
            )
        return problems

    def setup(self, pretrained: str | None) -> InputSpec:
        return InputSpec("image", size=train_size(self.size, self.augment))

    def datasets(self, split: Split) -> dict[str, Dataset]:
        listed = self.listed.get(split, self.listed["train"])
        source = self.open(listed, self.wanted)
        indices = np.arange(len(source.ids))
        if split not in self.listed or (split == "train" and "validation" not in self.listed):
            indices = carve(len(source.ids), self.validation, self.split_seed)[split == "validation"]
        dataset = DenseDataset(
            self.option,
            list(self.tasks),
            source,
            indices,
            size=self.size,
            fit=self.fit,
            augment=self.augment if split == "train" else None,
            share_of=("segmentation", self.unlabelled) if "segmentation" in self.offered else None,
            device=self.augment.device if self.augment is not None else "auto",
        )
        return {dataset.name: dataset}

    def open(self, listed: str, wanted: Sequence[str]) -> Source:
        """The records of one published split, from their packed form where there is one."""
        root = self.located
        if root is None:
            raise UserError(self.check())
        if packed.covers(root, [listed], wanted):
            return packed.PackedSource(root / packed.FOLDER / listed, self.layers(wanted))
        return self.source(root, listed, wanted)

    @abstractmethod
    def layers(self, wanted: Sequence[str]) -> dict[str, Layer]:
        """How the stored maps of the annotations in `wanted` become targets."""

    @property
    def annotations(self) -> dict[str, Annotation]:
        """What the archive offers; it takes any number of classes, and wrong labels are found on reading."""
        return {
            name: Annotation(a.kind, a.loss_kind, self.tasks.get(name, {}).get("num_classes"))
            if a.num_classes is not None
            else a
            for name, a in self.offered.items()
        }

    @property
    def wanted(self) -> list[str]:
        """The maps that are read: those of the tasks, and the labels that decide about crops."""
        crops = self.augment is not None and self.augment.max_share < 1 and "segmentation" in self.offered
        return list(self.tasks) + (["segmentation"] if crops and "segmentation" not in self.tasks else [])

    @property
    def folder(self) -> str:
        """Where `runner data prepare` puts it, below a root."""
        return self.path

    def count(self) -> dict[str, int]:
        """Published split → its number of images."""
        return {listed: len(self.open(listed, self.wanted).ids) for listed in dict.fromkeys(self.listed.values())}

    @property
    def converted(self) -> bool:
        """Whether the maps of the tasks are packed already."""
        root = self.located
        return root is not None and packed.covers(root, self.listed.values(), self.wanted)

    def convert(self, target: Path, progress: Progress) -> str:
        """Pack the images with the maps of the tasks into `target`; returns what was done."""
        names = [name for name in self.offered if name in self.wanted]
        splits = {s: self.unpacked(s, names) for s in dict.fromkeys(self.listed.values())}
        folder = packed.pack(target, splits, names, progress)
        size = sum(path.stat().st_size for path in folder.rglob("*.bin"))
        count = sum(len(source.ids) for source in splits.values())
        return f"{count:,} images with {', '.join(names)}: {folder}, {size_in_words(size)}"

    def unpacked(self, listed: str, wanted: Sequence[str]) -> Source:
        """The records of one published split as they were published."""
        if self.located is None:
            raise UserError(self.check())
        return self.source(self.located, listed, wanted)

    def classes(self, annotation: str) -> int:
        """Number of classes: as the task is configured, else as published."""
        published = self.offered[annotation].num_classes
        return int(self.tasks.get(annotation, {}).get("num_classes", published))

    @cached_property
    def located(self) -> Path | None:
        """The archive's folder, None where it is not there."""
        return locate(self.path, self.data_root, (self.marker, packed.MARKER))


class Files:
    """Records whose image and maps are files of their own.

    Args:
        root: what the names are relative to. ids: one readable id per record.
        images: of each record. maps: annotation → of each record, None for one that has none.
        layers: how stored maps become targets.
        read_image: file → RGB. read_map: (annotation, file) → stored map (H, W), for normals (3, H, W). Both are
            functions of a module: records travel to workers.
    """

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        images: Sequence[str],
        maps: Mapping[str, Sequence[str | None]],
        layers: Mapping[str, Layer],
        *,
        read_map: Callable[[str, Path], np.ndarray],
        read_image: Callable[[Path], Image] = archive.read_rgb,
    ) -> None:
        self.root, self.ids = root, ids
        self.layers = layers
        self._images, self._maps = images, maps
        self._read_image, self._read_map = read_image, read_map

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        image = self._read_image(self.root / self._images[index])
        maps = {}
        for name in wanted:
            file = self._maps[name][index]
            if file is not None:
                maps[name] = self._read_map(name, self.root / file)
        return Record(image, maps, self.ids[index])
