"""Dense vision: one data set whose images carry several maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from runner.errors import Problem, UserError
from runner.mixtures.augment import Augment, whole, wrong_size
from runner.mixtures.base import Example
from runner.mixtures.colours import Colours
from runner.mixtures.views import Layer, View, view_image, view_map

if TYPE_CHECKING:
    from PIL.Image import Image

    from runner.mixtures.stored import StoredExample

Fit = Literal["resize", "pad"]


@dataclass
class Record:
    """One example as it is stored.

    Attributes:
        image: RGB.
        maps: annotation → stored map (H, W), for normals (3, H, W); an image without one has no key.
        id: readable.
    """

    image: Image
    maps: dict[str, np.ndarray]
    id: str


class Source(Protocol):
    """Where records come from. `layers`: annotation → how its stored map becomes a target."""

    layers: Mapping[str, Layer]

    def read(self, index: int, wanted: Sequence[str]) -> Record:
        """Record `index` with the maps of the annotations in `wanted`."""


class DenseDataset:
    """Images with maps, seen through the augmentation or as evaluation sees them.

    Args:
        name: of the data set. tasks: the annotations that are targets.
        source: where records come from. indices: those of `source` that belong to this split.
        size: (H, W) of examples. fit: how images of another size get there without augmentation, see `whole`.
        augment: what happens when `example` is given a generator.
        share_of: the class map that `augment.max_share` looks at, with its unlabelled stored value.
        device: where examples are made, see `Augment.device`.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[str],
        source: Source,
        indices: Sequence[int],
        *,
        size: tuple[int, int],
        fit: Fit = "resize",
        augment: Augment | None = None,
        share_of: tuple[str, int] | None = None,
        device: str = "auto",
    ) -> None:
        self.name = name
        self.tasks = tuple(tasks)
        self.source = source
        self.indices = indices
        self.size = size
        self.fit = fit
        self.augment = augment
        self.device = device
        self.share_of = share_of if augment is not None and augment.max_share < 1 else None

    def __len__(self) -> int:
        return len(self.indices)

    def hands_over_stored(self, device: str) -> bool:
        """Whether a model on a device of this type gets batches as they are stored."""
        return self.device == "accelerator" or (self.device == "auto" and device == "cuda")

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        record, view, colours = self.look(index, rng)
        pixels = view_image(record.image, view, colours)
        targets = {task: self.target(record, task, view) for task in self.tasks if task in record.maps}
        return Example({"pixels": pixels}, targets, record.id)

    def stored_example(self, index: int, rng: np.random.Generator | None) -> StoredExample:
        """What `example` would be made of, for `runner.mixtures.stored`: drawn with the same random numbers."""
        from runner.mixtures.stored import StoredExample  # needs torch, which the front end does without

        record, view, colours = self.look(index, rng)
        maps = {task: record.maps[task] for task in self.tasks if task in record.maps}
        return StoredExample(np.asarray(record.image), maps, view, colours, record.id)

    def target(self, record: Record, task: str, view: View, out: np.ndarray | None = None) -> np.ndarray:
        """A record's map as a target, see `view_map`.

        Raises:
            UserError: the map holds a value that is no class.
        """
        try:
            return view_map(record.maps[task], self.source.layers[task], view, out)
        except ValueError as error:
            what = f"data set '{self.name}', example '{record.id}', task '{task}': {error}"
            raise UserError(what, f"compare mixture.tasks.{task} with the data") from error

    def look(self, index: int, rng: np.random.Generator | None) -> tuple[Record, View, Colours | None]:
        """An example's record, what is seen of it, and what happens to its colours (None for nothing)."""
        augment = self.augment if rng is not None else None
        wanted = list(self.tasks)
        if augment is not None and self.share_of is not None and self.share_of[0] not in wanted:
            wanted.append(self.share_of[0])  # a single-task run sees the same crops as a joint one
        record = self.source.read(int(self.indices[index]), wanted)
        shape = (record.image.height, record.image.width)
        if augment is None or rng is None:
            return record, whole(shape, self.size, self.fit == "pad"), None
        grid = shape if self.fit == "pad" else self.size
        labels, unlabelled = None, 0
        if self.share_of is not None:
            labels, unlabelled = record.maps.get(self.share_of[0]), self.share_of[1]
        view = augment.draw(rng, grid, self.size, labels, unlabelled)
        return record, view, augment.colours(rng)


def parse_geometry(size: Sequence[int], augment: Mapping[str, Any] | None) -> tuple[tuple[int, int], Augment | None]:
    """The keys `size` and `augment` of a dense mixture.

    Raises:
        UserError: every problem in them.
    """
    problems = []
    if wrong_size(size):
        problems.append(Problem(f"'mixture.size' must be {wrong_size(size)}, not {size!r}"))
    try:
        parsed = Augment.parse(augment)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return (size[0], size[1]), parsed


def train_size(size: tuple[int, int], augment: Augment | None) -> tuple[int, int]:
    """(H, W) of training images."""
    return (augment.crop if augment is not None else None) or size
