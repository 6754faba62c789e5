"""Joint augmentation of an image and its dense labels, driven by one numpy generator.

The geometry (zoom, crop, flip) is drawn once per example and shown to the image and to every map by
`runner.mixtures.views`; colours change in the image alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from runner.errors import Problem, UserError, suggest
from runner.mixtures.colours import Colours
from runner.mixtures.views import View

DEVICES = ("auto", "loader", "accelerator")

CROP_ATTEMPTS = 10
"""How often a crop is drawn again before `max_share` gives up, as in mmsegmentation and InvPT."""


@dataclass(frozen=True)
class Augment:
    """What happens to a training example.

    Attributes:
        scale: zooms, one of which is drawn; or `between` the smallest and the largest of which one is drawn. Depth is
            divided by the zoom (MTAN, ATRC).
        between: draw any zoom from the smallest to the largest of `scale`, not one of them.
        crop: (H, W) of a random window; smaller images are centred in it, the rest is unlabelled. None takes the
            mixture's `size`.
        max_share: a window in which one class has this share of the labelled pixels or more is drawn again, up to ten
            times (0.75 in InvPT); 1 accepts every window.
        flip: mirror every second example; normals are mirrored with it.
        colour: change brightness, contrast, saturation and hue, each in every second example (the photometric
            distortion of SSD, as in InvPT).
        device: where examples are made of what is stored: "loader", in the processes that load, one by one;
            "accelerator", where the model is, a batch at a time; "auto" takes the accelerator where that is a GPU.
    """

    scale: tuple[float, ...] = (1.0,)
    between: bool = False
    crop: tuple[int, int] | None = None
    max_share: float = 1.0
    flip: bool = False
    colour: bool = False
    device: str = "auto"

    @classmethod
    def parse(cls, config: Mapping[str, Any] | None, where: str = "mixture.augment") -> Augment | None:
        """The augmentation that a config describes; None for none.

        Raises:
            UserError: every unknown key and every value that makes no sense.
        """
        if config is None:
            return None
        valid = [f.name for f in fields(cls)]
        problems = [Problem(f"unknown key '{where}.{key}'", suggest(key, valid)) for key in config if key not in valid]
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key in valid:
                wrong = _WRONG[key](value)
                if wrong:
                    problems.append(Problem(f"'{where}.{key}' must be {wrong}, not {value!r}"))
                else:
                    values[key] = tuple(value) if isinstance(value, list | tuple) else value
        if problems:
            raise UserError(problems)
        return cls(**values)

    def draw(
        self,
        rng: np.random.Generator,
        grid: tuple[int, int],
        size: tuple[int, int],
        labels: np.ndarray | None = None,
        unlabelled: int = -100,
    ) -> View:
        """A random view.

        Args:
            grid: (H, W) of the image at zoom 1.
            size: (H, W) of the window where there is no `crop`.
            labels: the stored class map that `max_share` looks at, of any size, with integers of `unlabelled` or more.
            unlabelled: the stored value that does not count.
        """
        if self.between:
            scale = float(rng.uniform(min(self.scale), max(self.scale)))
        else:
            scale = float(self.scale[rng.integers(len(self.scale))])
        height, width = self.crop or size
        zoomed = (max(int(grid[0] * scale), 1), max(int(grid[1] * scale), 1))
        flip = bool(self.flip and rng.random() < 0.5)
        for _ in range(CROP_ATTEMPTS if self.max_share < 1 and labels is not None else 1):
            offset = (_corner(rng, zoomed[0], height), _corner(rng, zoomed[1], width))
            view = View(zoomed, offset, (height, width), scale, flip)
            if self.max_share == 1 or labels is None or _largest_share(labels, view, unlabelled) < self.max_share:
                break
        return view

    def colours(self, rng: np.random.Generator) -> Colours | None:
        """What happens to the colours of the next image; None where `colour` is off."""
        return Colours.draw(rng) if self.colour else None


def whole(image: tuple[int, int], size: tuple[int, int], pad: bool) -> View:
    """The view of evaluation: the image stretched to `size`, or in its own pixels, centred in `size`.

    Args:
        image: (H, W) of the image.
    """
    grid = image if pad else size
    return View(grid, ((grid[0] - size[0]) // 2, (grid[1] - size[1]) // 2), size, exact=True)


def _corner(rng: np.random.Generator, length: int, window: int) -> int:
    """A random corner of the window along one axis; a shorter image is centred in it."""
    return int(rng.integers(length - window + 1)) if length >= window else -((window - length) // 2)


def _largest_share(labels: np.ndarray, view: View, unlabelled: int) -> float:
    """The share of the most frequent class among the labelled pixels of the window; 1 where there are none.

    Large windows are judged by a grid of about 64 pixels across.
    """
    rows, columns = (np.arange(n)[view.nearest(axis, n)] for axis, n in enumerate(labels.shape))
    part = labels[rows[:: max(len(rows) // 64, 1), None], columns[:: max(len(columns) // 64, 1)]]
    counts = np.bincount(part.astype(np.int64).ravel() - min(unlabelled, 0))
    if unlabelled - min(unlabelled, 0) < len(counts):
        counts[unlabelled - min(unlabelled, 0)] = 0
    return counts.max() / counts.sum() if counts.sum() else 1.0


# ---- values of config keys -------------------------------------------------------------------------------------------


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_size(value: Any) -> str:
    """What a size [H, W] must be, where `value` is none; "" where it is one."""
    fits = isinstance(value, list | tuple) and len(value) == 2
    if fits and all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in value):
        return ""
    return "[height, width] in pixels"


def _wrong_scale(value: Any) -> str:
    fits = isinstance(value, list | tuple) and len(value) > 0 and all(_number(v) and 0 < v < np.inf for v in value)
    return "" if fits else "a list of zooms such as [1.0, 1.2, 1.5] (with between=true: of the smallest and largest)"


_WRONG = {
    "scale": _wrong_scale,
    "between": lambda value: "" if isinstance(value, bool) else "true or false",
    "crop": lambda value: "" if value is None else wrong_size(value),
    "max_share": lambda value: "" if _number(value) and 0 < value <= 1 else "a number above 0, up to 1",
    "flip": lambda value: "" if isinstance(value, bool) else "true or false",
    "colour": lambda value: "" if isinstance(value, bool) else "true or false",
    "device": lambda value: "" if value in DEVICES else "auto, loader or accelerator",
}
"""Key → what a value must be, "" where it is right."""
