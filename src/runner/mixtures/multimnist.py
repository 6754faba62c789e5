"""MultiMNIST: two overlapping digits in one image, a task for each.

Sabour, Frosst and Hinton 2017 (arXiv 1710.09829), in the form that Sener and Koltun 2018 (arXiv 1810.04650) published:
every digit of MNIST once as the left one, with a random other as the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.config.kinds import NonNegativeFloat, NonNegativeInt, PositiveInt
from runner.errors import Problem, UserError
from runner.mixtures.base import Dataset, Example, Split
from runner.mixtures.encoded import Encoded, open_images
from runner.mixtures.from_sources import FromSources
from runner.mixtures.images import ImageSource, resize, to_rgb
from runner.mixtures.locate import locate
from runner.mixtures.published import Download, Progress, Published
from runner.specs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

DIGIT, CANVAS, SHIFT = 28, 36, 6
"""Pixels of a digit, of the canvas, and by how much the right digit lies lower and further right."""

SIDES = ("left", "right")
_HUB = "https://huggingface.co/datasets/ylecun/mnist/resolve/main/mnist"


class MultiMNIST(FromSources):
    """Tasks `left` and `right`: the digit at the top left and the one at the bottom right.

    Both are laid on a canvas of 36 × 36, the brighter pixel wins, and the canvas is resized to `size` by taking nearest
    pixels. Pairs are drawn inside a split, so that no digit of validation or test is ever trained on.

    Args:
        sources: one data set of single digits, whose labels are those of both tasks.
        size: (H, W) of the images.
        pair_seed: decides which digits share an image; not the run's seed.
        validation, test, split_seed, hub: see `FromSources`.
    """

    input_kind = "image"
    source_kind = ImageSource
    published = Published(
        home="https://huggingface.co/datasets/ylecun/mnist",
        downloads=(
            Download(f"{_HUB}/train-00000-of-00001.parquet", "train.parquet"),
            Download(f"{_HUB}/test-00000-of-00001.parquet", "test.parquet"),
        ),
        counts={"train": 60_000, "test": 10_000},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        sources: Mapping[str, Any],
        size: list[PositiveInt],
        pair_seed: NonNegativeInt = 0,
        validation: NonNegativeFloat = 0.1,
        test: NonNegativeFloat | None = None,
        split_seed: NonNegativeInt = 0,
        hub: bool = False,
    ) -> None:
        super().__init__(
            data_root, tasks=tasks, sources=sources, validation=validation, test=test, split_seed=split_seed, hub=hub
        )
        self.size, self.pair_seed = tuple(size), pair_seed
        if len(size) != 2 or min(size) < 1:
            self._problems.append(Problem(f"'mixture.size' must be [height, width] in pixels, not {size}"))
        for name in self.tasks:
            if name not in SIDES:
                self._problems.append(Problem(f"MultiMNIST has no task '{name}'", "its tasks are left and right"))
        if len(self.labels) > 1:
            what = f"MultiMNIST takes both digits from one data set, and 'mixture.sources' has {', '.join(self.labels)}"
            self._problems.append(Problem(what, "set the others to null"))

    @property
    def folder(self) -> str:
        """Where `runner data prepare` puts it, below a root."""
        return next((str(s.path) for s in self.sources.values() if s.path is not None), "hub/mnist")

    @property
    def located(self) -> Path | None:
        """The folder of the single digits, None where it is not there."""
        return locate(self.folder, self.data_root, ("train.parquet", "train-00000-of-00001.parquet", "data"))

    def count(self) -> dict[str, int]:
        """Split of the source → its number of digits."""
        (name,) = self.labels
        rows = {split: self.rows(name, split)[0] for split in ("train", "test")}
        return {split: len(found) for split, found in rows.items()}

    @property
    def converted(self) -> bool:
        """Always: images are made while training."""
        return True

    def convert(self, target: Path, progress: Progress) -> str:
        """Nothing to do."""
        return "images are made while training: there is nothing to convert"

    def setup(self, pretrained: str | None) -> InputSpec:
        for name in self.labels:
            self.rows(name, "train")
        return InputSpec("image", size=(self.size[0], self.size[1]))

    def picture(self, image: Image, size: tuple[int, int]) -> np.ndarray:
        """Two digits on one canvas, light on dark; a picture larger than the canvas is scaled down to it first."""
        grey = to_rgb(image).convert("L")
        if max(grey.size) > CANVAS:
            grey = resize(grey, (CANVAS, CANVAS), "resize")
        return scaled(nearest(np.asarray(grey), size))

    def dataset(self, name: str, split: Split) -> Dataset:
        rows, numbers = self.rows(name, split)
        code = ("train", "validation", "test").index(split)
        others = np.random.default_rng([self.pair_seed, code]).integers(len(numbers), size=len(numbers))
        return Pairs(
            name,
            split=rows.split,
            left=numbers,
            right=numbers[others],
            targets=self.targets(name, rows),
            images=open_images(rows, self.sources[name].image),
            size=(self.size[0], self.size[1]),
        )


class Pairs:
    """One split.

    Args:
        split: the source's. left, right: row numbers of the digits of each example.
        targets: task → labels of all rows of the source. images: of all rows.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        left: np.ndarray,
        right: np.ndarray,
        targets: Mapping[str, np.ndarray],
        images: Encoded,
        size: tuple[int, int],
    ) -> None:
        self.name, self.tasks, self.split = name, tuple(targets), split
        self.rows = {"left": left, "right": right}
        self._targets, self._images, self._size = dict(targets), images, size
        self._digits: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows["left"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_digits": {}}  # every worker fills its own: 47 MB at most

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Pixels (3, H, W), the grey image three times, and the digits' labels; nothing is augmented."""
        left, right = (int(self.rows[side][index]) for side in SIDES)
        grey_HW = overlay(self._digit(left), self._digit(right), self._size)
        rows = {"left": left, "right": right}
        targets = {task: np.asarray(values[rows[task]]) for task, values in self._targets.items()}
        return Example({"pixels": scaled(grey_HW)}, targets, f"{self.name}/{self.split}/{left}+{right}")

    def _digit(self, row: int) -> np.ndarray:
        found = self._digits.get(row)
        if found is None:
            from PIL import Image

            try:
                with Image.open(self._images.open(row)) as image:
                    found = np.asarray(image.convert("L"))
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"the image {self.name}/{self.split}/{row} cannot be read: {error}") from error
            if found.shape != (DIGIT, DIGIT):
                what = f"the image {self.name}/{self.split}/{row} has {found.shape[0]} x {found.shape[1]} pixels"
                raise UserError(what, f"MultiMNIST is made of digits of {DIGIT} x {DIGIT}")
            self._digits[row] = found
        return found


def overlay(left_HW: np.ndarray, right_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Two digits (28, 28) on a canvas, resized to `size` by nearest pixels."""
    canvas = np.zeros((CANVAS, CANVAS), left_HW.dtype)
    canvas[:DIGIT, :DIGIT] = left_HW
    place = canvas[SHIFT : SHIFT + DIGIT, SHIFT : SHIFT + DIGIT]
    np.maximum(place, right_HW, out=place)
    return nearest(canvas, size)


def nearest(grey_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The nearest pixels of a grey image of any size."""
    rows, columns = ((2 * np.arange(n) + 1) * length // (2 * n) for n, length in zip(size, grey_HW.shape, strict=True))
    return grey_HW[rows[:, None], columns]


def scaled(grey_HW: np.ndarray) -> np.ndarray:
    """The grey image three times, (3, H, W) float32 in [0, 1]."""
    return np.repeat(grey_HW[None].astype(np.float32) / np.float32(255), 3, axis=0)
