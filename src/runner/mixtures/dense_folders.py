"""Images of one's own with maps of one's own, a file each, in folders of any layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import Problem, UserError, suggest
from runner.mixtures import archive, packed
from runner.mixtures.base import Annotation, Dataset, Split, carve, check_tasks
from runner.mixtures.dense import DenseDataset
from runner.mixtures.dense_archive import DenseArchive, Files
from runner.mixtures.locate import locate, missing
from runner.mixtures.map_files import MapFiles, Pattern, parse_maps, parse_pattern
from runner.mixtures.published import Published
from runner.mixtures.views import Layer

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class DenseFolders(DenseArchive):
    """One data set; the tasks are the names in `maps`, or some of them.

    `{}` in a pattern stands for the id of an example, folders included, which is the same for an image and its maps;
    `{split}` for what `splits` calls a split. Images are JPEG or PNG. Maps are PNG of one channel (palettes count as
    their numbers), JPEG, or .npy of (H, W), for normals three channels; they may have another size than the image.

    Args:
        path: the folder, see `runner.mixtures.locate`.
        images: pattern of the images, such as "{split}/images/{}.jpg"; "a|b" for either of two.
        maps: annotation → its files and what they mean, see `runner.mixtures.map_files.MapFiles`.
        splits: split → a list of ids (a .txt file in the folder, one a line), or what `{split}` stands for; those left
            out are carved from train. None: every image belongs to train, from which the others are carved.
        validation, test: share or number of the training images that are carved where `splits` has none.
        size, fit, augment, split_seed, partial: see `DenseArchive`.
    """

    option = "dense_folders"
    what = "the folder of images"
    marker = ""
    published = Published(home="", by_hand=("put the images and their maps into {folder}",))
    offered: ClassVar[Mapping[str, Annotation]] = {}

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        images: str,
        maps: dict[str, Any],
        splits: dict[str, str] | None = None,
        fit: Literal["pad", "resize"] = "resize",
        augment: Mapping[str, Any] | None = None,
        validation: PositiveInt | Fraction = 0.1,
        test: PositiveInt | Fraction = 0.2,
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
        self.test = test
        self.splits = {"train": ""} if splits is None else {str(k): str(v) for k, v in splits.items()}
        self.maps, self._problems = parse_maps(maps)
        self.images, wrong = parse_pattern("mixture.images", images)
        self._problems += wrong + self._split_problems()
        self.offered = {name: files.annotation for name, files in self.maps.items()}  # type: ignore[misc]
        self.listed = {split: split for split in SPLITS if split in self.splits}  # type: ignore[misc]

    def _split_problems(self) -> list[Problem]:
        problems = [
            Problem(f"unknown key 'mixture.splits.{split}'", suggest(split, SPLITS))
            for split in self.splits
            if split not in SPLITS
        ]
        if "train" not in self.splits:
            problems.append(Problem("'mixture.splits' names no training images", "such as mixture.splits.train=train"))
        patterns = {"images": self.images} | {f"maps.{n}.files": m.pattern for n, m in self.maps.items()}
        for split, word in self.splits.items():
            listed = word.endswith(".txt")
            for key, pattern in patterns.items():
                if pattern is None or not pattern.by_split or (word and not listed):
                    continue
                what = f"'mixture.splits.{split}' is the list {word}" if listed else "'mixture.splits' is null"
                problems.append(
                    Problem(
                        f"'mixture.{key}' has {{split}}, but {what}", "ids may hold folders: write {} for all of it"
                    )
                )
            if word and not listed and self.images is not None and not self.images.by_split:
                what = (
                    f"'mixture.splits.{split}' is '{word}': neither a .txt file, nor has 'mixture.images' a {{split}}"
                )
                problems.append(Problem(what, f"name a list of ids: mixture.splits.{split}={word}.txt"))
        names = [word for word in self.splits.values() if word]
        for word in sorted({n for n in names if names.count(n) > 1}):
            problems.append(Problem(f"'mixture.splits' uses '{word}' more than once: splits may not overlap"))
        return problems

    def check(self) -> list[Problem]:
        problems = [*self._problems, *check_tasks(self.tasks, self.annotations)]
        root = self.located
        if root is None:
            get = "put images and maps there, or point mixture.path at them"
            problems.append(missing(self.what, self.path, self.data_root, get, see="runner show mixture/dense_folders"))
        if problems or root is None or self.converted:
            return problems
        for split, word in self.splits.items():
            if word.endswith(".txt") and not (root / word).is_file():
                what = f"there is no list {root / word} ('mixture.splits.{split}')"
                problems.append(Problem(what, suggest(word, [p.name for p in root.glob("*.txt")])))
        if not problems:
            needed = {"": self._folders(self.images)} | {t: self._folders(self.maps[t].pattern) for t in self.wanted}
            problems += archive.lacking_folders(self.what, self.option, root, needed)
        return problems

    def _folders(self, pattern: Pattern | None) -> list[str]:
        assert pattern is not None
        return list(dict.fromkeys(pattern.folders(word) for word in self.splits.values()))

    def folders(self, task: str) -> list[str]:
        return self._folders(self.maps[task].pattern if task else self.images)

    def layers(self, wanted: Any) -> dict[str, Layer]:
        return {name: self.maps[name].layer(self.classes(name)) for name in wanted}

    def classes(self, annotation: str) -> int:
        return int(self.tasks.get(annotation, {}).get("num_classes") or 0)

    @property
    def crops_by(self) -> str | None:
        """The class map that `augment.max_share` looks at: the first there is."""
        return next((name for name, files in self.maps.items() if files.kind == "classes"), None)

    @property
    def wanted(self) -> list[str]:
        by = self.crops_by if self.augment is not None and self.augment.max_share < 1 else None
        return list(self.tasks) + ([by] if by is not None and by not in self.tasks else [])

    def source(self, root: Path, listed: str, wanted: Any) -> Files:
        assert self.images is not None
        word = self.splits[listed]
        ids = archive.read_list(root / word) if word.endswith(".txt") else self.images.find(root, word)
        patterns = {"": self.images} | {name: self.maps[name].pattern for name in wanted}
        choices = {name: pattern.choices(word) for name, pattern in patterns.items() if pattern is not None}
        see = "runner show mixture/dense_folders"
        found = archive.match_files(root, ids, choices, wanted if self.partial else (), see)
        images = archive.names_of(found.pop(""))
        reader = ReadMap({name: self.maps[name] for name in wanted})
        unique = [f"{word}/{name}" for name in ids] if self.images.by_split else ids
        return Files(root, unique, images, found, self.layers(wanted), read_map=reader)

    def datasets(self, split: Split) -> dict[str, Dataset]:
        source = self.open(self.listed.get(split, "train"), self.wanted)
        by = self.crops_by
        dataset = DenseDataset(
            Path(self.path).name or self.option,
            list(self.tasks),
            source,
            self._indices(split, len(source.ids)),
            size=self.size,
            fit=self.fit,
            augment=self.augment if split == "train" else None,
            share_of=(by, self.maps[by].ignored[0] if self.maps[by].ignored else -1) if by is not None else None,
            device=self.augment.device if self.augment is not None else "auto",
        )
        return {dataset.name: dataset}

    def _indices(self, split: Split, size: int) -> np.ndarray:
        """Those of a split in its source; the test split is carved first, so that it does not depend on the other."""
        rest = np.arange(size)
        if split in self.listed and split != "train":
            return rest
        for other, share in (("test", self.test), ("validation", self.validation)):
            if other in self.listed:
                continue
            try:
                kept, taken = carve(len(rest), share, self.split_seed)
            except UserError as error:
                what = f"'mixture.{other}' is {share}: of {len(rest)} images that leaves none on one side"
                raise UserError(what, f"give a share such as 0.1, a count, or mixture.splits.{other}=NAME") from error
            if split == other:
                return rest[taken]
            rest = rest[kept]
        return rest

    @cached_property
    def located(self) -> Path | None:
        return locate(self.path, self.data_root)

    @property
    def converted(self) -> bool:
        root = self.located
        return root is not None and packed.covers(root, self.listed.values(), self.wanted)


class ReadMap:
    """Reads stored maps by their kinds; an instance travels to loading processes.

    Args:
        maps: annotation → its files.
    """

    def __init__(self, maps: Mapping[str, MapFiles]) -> None:
        self.kinds = {name: files.kind for name, files in maps.items()}

    def __call__(self, name: str, path: Path) -> np.ndarray:
        if self.kinds[name] == "normals":
            if path.suffix == ".npy":
                return np.ascontiguousarray(archive.vectors(archive.read_array(path), path).transpose(2, 0, 1))
            return archive.read_planes(path)
        try:
            return archive.read_plane(path)
        except UserError as error:
            if "has shape" not in error.problems[0].what:
                raise
            what = f"{error.problems[0].what}: a map of kind '{self.kinds[name]}' has one channel"
            raise UserError(what, "store the numbers themselves, not colours; a palette image holds both") from error
