"""Rendered rooms: dense labels that are exact, from no files at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.config.kinds import NonNegativeFloat, NonNegativeInt, PositiveInt
from runner.errors import Problem
from runner.mixtures.base import Annotation, Dataset, Mixture, Split, check_tasks
from runner.mixtures.dense import DenseDataset, Record, parse_geometry, train_size
from runner.mixtures.indoor.draws import Draws
from runner.mixtures.indoor.furniture import CLASSES
from runner.mixtures.indoor.render import Picture, render
from runner.mixtures.indoor.scene import random_scene
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_edge, decode_normals
from runner.specs import InputSpec

FIRST = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
"""The first scene of each split: a split of any other size leaves the other splits as they are."""

OFFERED = {
    "segmentation": Annotation("dense", "classification", len(CLASSES)),
    "depth": Annotation("dense", "regression"),
    "normals": Annotation("dense", "regression"),
    "edge": Annotation("dense", "classification"),
}


class Rooms(Mixture):
    """Furnished rooms with a random camera, ray cast when they are asked for; needs no data.

    Tasks: `segmentation` (see `runner.mixtures.indoor.furniture.CLASSES`), `depth` (metres along the optical axis),
    `normals` (camera coordinates: x right, y down, z forward; towards the camera), `edge` (borders of objects and jumps
    in depth). Scene n of a `scene_seed` is the same on every machine.

    Args:
        size: (H, W) of the pictures.
        train, validation, test: number of scenes in each split.
        scene_seed: another seed, other rooms.
        augment: keys of `runner.mixtures.augment.Augment`; None for none.
        cache_mb: memory, per process that loads data, for scenes that were drawn before; the first ones stay.
    """

    input_kind = "image"

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        size: list[PositiveInt] = (64, 64),  # type: ignore[assignment]  # a tuple default cannot be changed
        train: PositiveInt = 2000,
        validation: PositiveInt = 200,
        test: PositiveInt = 400,
        scene_seed: NonNegativeInt = 0,
        augment: Mapping[str, Any] | None = None,
        cache_mb: NonNegativeFloat = 256,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.size, self.augment = parse_geometry(size, augment)
        self.lengths = {"train": train, "validation": validation, "test": test}
        self.scene_seed = scene_seed
        self.cache_mb = cache_mb

    def check(self) -> list[Problem]:
        problems = check_tasks(self.tasks, OFFERED)
        limit = FIRST["validation"]
        problems += [
            Problem(f"'mixture.{split}' is {length}, but a split has {limit:,} scenes at most")
            for split, length in self.lengths.items()
            if length > limit
        ]
        return problems

    def setup(self, pretrained: str | None) -> InputSpec:
        return InputSpec("image", size=train_size(self.size, self.augment))

    def datasets(self, split: Split) -> dict[str, Dataset]:
        first = FIRST[split]
        dataset = DenseDataset(
            "rooms",
            list(self.tasks),
            RoomScenes(self.scene_seed, self.size, int(self.cache_mb * 2**20)),
            range(first, first + self.lengths[split]),
            size=self.size,
            augment=self.augment if split == "train" else None,
            share_of=("segmentation", -100),
            device=self.augment.device if self.augment is not None else "auto",
        )
        return {dataset.name: dataset}


class RoomScenes:
    """Every scene of a seed, by its number.

    Args:
        seed: of all scenes. size: (H, W). cache_bytes: what the memory of drawn scenes may hold.
    """

    def __init__(self, seed: int, size: tuple[int, int], cache_bytes: int = 0) -> None:
        self.seed = seed
        self.size = size
        self.cache_bytes = cache_bytes
        self.layers = {
            "segmentation": Layer("classes", ClassDecoder(len(CLASSES))),
            "depth": Layer("depth", decode_depth),
            "normals": Layer("normals", decode_normals),
            "edge": Layer("edge", decode_edge),
        }
        self._cache: dict[int, Picture] = {}
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:  # a worker process starts with an empty memory
        return {**self.__dict__, "_cache": {}, "_cached": 0}

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        from PIL import Image

        picture = self.picture(index)
        maps = {
            "segmentation": picture.classes,
            "depth": picture.depth,
            "normals": picture.normals.transpose(2, 0, 1),
            "edge": picture.edge,
        }
        return Record(Image.fromarray(picture.image), {name: maps[name] for name in wanted}, f"rooms/{index}")

    def picture(self, index: int) -> Picture:
        """Scene `index`, drawn or remembered."""
        found = self._cache.get(index)
        if found is None:
            found = draw_room(self.seed, index, self.size)
            bytes_ = sum(array.nbytes for array in vars(found).values())
            # Training visits all scenes in turn: to drop the oldest for the newest would never find any again.
            if self._cached + bytes_ <= self.cache_bytes:
                self._cache[index] = found
                self._cached += bytes_
        return found


def draw_room(seed: int, index: int, size: tuple[int, int]) -> Picture:
    """Scene `index` of `seed` at (H, W): a pure function, the same to the last bit on every machine."""
    draws = Draws(seed, index)
    scene = random_scene(draws)
    return render(scene, *size, draws.bytes(size[0] * size[1] * 6))
