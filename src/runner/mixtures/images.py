"""Classification of images: one data set per task, or several tasks on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.config.kinds import NonNegativeFloat, NonNegativeInt
from runner.errors import Problem, UserError
from runner.mixtures.base import Dataset, Example, Split
from runner.mixtures.encoded import Encoded, InMemory, open_images
from runner.mixtures.from_sources import FromSources
from runner.mixtures.labels import targets_at
from runner.mixtures.rows import Rows
from runner.mixtures.sources import Source
from runner.specs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["resize", "crop"]


@dataclass(frozen=True, kw_only=True)
class ImageSource(Source):
    """A data set of images.

    Attributes:
        image: column with encoded images (as the hub stores them), or with paths relative to the table's folder.
        flip: mirror half of the training images; not for digits, letters and signs.
    """

    image: str = "image"
    flip: bool = False


class Images(FromSources):
    """Images as RGB of one size, from parquet, folders of classes, tables of paths, or the hub.

    Args:
        sources: data set → `ImageSource`.
        size: [height, width] of what the backbone sees.
        fit: "resize" stretches to `size`; "crop" keeps the proportions and cuts out the centre.
        crop_padding: training images are shifted by up to so many pixels, their border repeated (He et al. 2016 with
            zeros and 4 pixels for CIFAR); 0 for none.
        cache_mb: decoded images kept per process, in all.
        validation, test, split_seed, hub: see `FromSources`.
    """

    input_kind = "image"
    source_kind = ImageSource

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        sources: Mapping[str, Any],
        size: list[int],
        fit: Fit = "resize",
        crop_padding: NonNegativeInt = 4,
        cache_mb: NonNegativeInt = 256,
        validation: NonNegativeFloat = 0.1,
        test: NonNegativeFloat | None = None,
        split_seed: NonNegativeInt = 0,
        hub: bool = False,
    ) -> None:
        super().__init__(
            data_root, tasks=tasks, sources=sources, validation=validation, test=test, split_seed=split_seed, hub=hub
        )
        if len(size) != 2 or min(size) < 1:
            self._problems.append(Problem(f"'mixture.size' must be [height, width] in pixels, not {size}"))
        self.size, self.fit, self.crop_padding = tuple(size), fit, crop_padding
        self._cache_bytes = cache_mb * 2**20 // max(len(self.labels), 1)

    def setup(self, pretrained: str | None) -> InputSpec:
        if not self.check():  # a dry run may go without data
            self.inspect()
        return InputSpec("image", size=(self.size[0], self.size[1]))

    def picture(self, image: Image, size: tuple[int, int]) -> np.ndarray:
        return pixels(image, size, self.fit)

    def inspect_inputs(self, name: str, rows: Rows) -> None:
        images = open_images(rows, self.sources[name].image)
        lost = images.lost() if isinstance(images, InMemory) else []
        if lost:
            raise UserError(
                f"data set '{name}': {len(lost)} of {len(rows)} images of '{rows.split}' are not there, "
                f"such as {lost[0]} (column '{self.sources[name].image}')",
                f"paths are relative to {rows.folder}" if rows.folder is not None else "put them there",
            )

    def dataset(self, name: str, split: Split) -> Dataset:
        rows, numbers = self.rows(name, split)
        source = self.sources[name]
        return ImageSet(
            name,
            split=rows.split,
            numbers=numbers,
            targets=self.targets(name, rows),
            images=open_images(rows, source.image),
            size=(self.size[0], self.size[1]),
            fit=self.fit,
            crop_padding=self.crop_padding,
            flip=source.flip,
            cache_bytes=self._cache_bytes,
        )


class ImageSet:
    """One split of one data set of images.

    Attributes:
        split, numbers: the source's split and the rows that belong to this one.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        numbers: np.ndarray,
        targets: Mapping[str, np.ndarray],
        images: Encoded,
        size: tuple[int, int],
        fit: Fit,
        crop_padding: int,
        flip: bool,
        cache_bytes: int,
    ) -> None:
        self.name, self.tasks = name, tuple(targets)
        self.split, self.numbers = split, numbers
        self._targets, self._images = dict(targets), images
        self._size, self._fit, self._crop_padding, self._flip = size, fit, crop_padding, flip
        self._room = cache_bytes // (size[0] * size[1] * 3)
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}  # every worker fills its own

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Pixels (3, H, W) and the labels that there are."""
        row = int(self.numbers[index])
        pixels_HW3 = self._cache.get(row)
        if pixels_HW3 is None:
            pixels_HW3 = self._decode(row)
            if len(self._cache) < self._room:
                self._cache[row] = pixels_HW3
        if rng is not None:
            pixels_HW3 = augment(pixels_HW3, rng, self._crop_padding, self._flip)
        return Example({"pixels": scaled(pixels_HW3)}, targets_at(self._targets, row), self._id(row))

    def _id(self, row: int) -> str:
        return f"{self.name}/{self.split}/{row}"

    def _decode(self, row: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(self._images.open(row)) as image:
                return bytes_of(image, self._size, self._fit)
        except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise UserError(
                f"the image of {self._id(row)} cannot be read: {error}",
                "replace it, or check the image column",
            ) from error


def pixels(image: Image, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """An opened image as evaluation sees it: (3, H, W) float32 in [0, 1]."""
    return scaled(bytes_of(image, size, fit))


def bytes_of(image: Image, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """An opened image as RGB of one size, (H, W, 3) uint8."""
    return np.asarray(resize(to_rgb(image), size, fit))


def scaled(pixels_HW3: np.ndarray) -> np.ndarray:
    """Bytes → (3, H, W) float32 in [0, 1]."""
    pixels_3HW = np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1), dtype=np.float32)
    pixels_3HW /= 255
    return pixels_3HW


def augment(pixels_HW3: np.ndarray, rng: np.random.Generator, padding: int, flip: bool) -> np.ndarray:
    """Shift by up to `padding` pixels each way, repeating the border, and mirror every second image if `flip`."""
    if padding:
        down, right = rng.integers(-padding, padding, size=2, endpoint=True)
        rows = np.clip(np.arange(pixels_HW3.shape[0]) + down, 0, pixels_HW3.shape[0] - 1)
        columns = np.clip(np.arange(pixels_HW3.shape[1]) + right, 0, pixels_HW3.shape[1] - 1)
        pixels_HW3 = pixels_HW3[rows][:, columns]
    if flip and rng.random() < 0.5:
        pixels_HW3 = pixels_HW3[:, ::-1]
    return pixels_HW3


def to_rgb(image: Image) -> Image:
    """RGB, upright as the camera says; 16-bit greys are scaled, transparent parts become white."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.format in ("JPEG", "TIFF", "WEBP"):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return pillow.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = pillow.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def resize(image: Image, size: tuple[int, int], fit: Fit) -> Image:
    """To (height, width), bilinear with antialiasing."""
    from PIL import Image as pillow
    from PIL import ImageOps

    target = (size[1], size[0])
    if fit == "crop":
        return ImageOps.fit(image, target, pillow.Resampling.BILINEAR)
    return image if image.size == target else image.resize(target, pillow.Resampling.BILINEAR)
