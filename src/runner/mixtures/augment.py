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

    def distort(self, pixels_3HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change the colours of an RGB image (float32 in [0, 1]) as `colour` says."""
        return photometric(pixels_3HW, rng) if self.colour else pixels_3HW

    def colours(self, rng: np.random.Generator) -> Colours | None:
        """What `distort` would do to the next image; None where `colour` is off."""
        return Colours.draw(rng) if self.colour else None


def whole(image: tuple[int, int], size: tuple[int, int], pad: bool) -> View:
    """The view of evaluation: the image stretched to `size`, or in its own pixels, centred in `size`.

    Args:
        image: (H, W) of the image.
    """
    grid = image if pad else size
    return View(grid, ((grid[0] - size[0]) // 2, (grid[1] - size[1]) // 2), size)


def photometric(pixels_3HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness ±32/255, contrast ×0.5…1.5, saturation ×0.5…1.5, hue ±36°, each with probability ½; in place.

    Contrast comes before or after saturation and hue, at random. Liu et al. 2016 (SSD, arXiv 1512.02325, section 2.2
    and code), with the constants that mmsegmentation and InvPT use; here without rounding to 8 bits in between.

    Args:
        pixels_3HW: float32 in [0, 1].
    """
    colours = Colours.draw(rng)
    if colours.delta:
        pixels_3HW += np.float32(colours.delta)
        np.clip(pixels_3HW, 0, 1, out=pixels_3HW)
    if colours.contrast_first and colours.gain != 1:
        pixels_3HW *= np.float32(colours.gain)
        np.minimum(pixels_3HW, 1, out=pixels_3HW)
    if colours.colourfulness != 1 or colours.turn:
        # A few rows at a time stay in the processor's cache: three times as fast.
        for row in range(0, pixels_3HW.shape[1], 32):
            shift_colours(pixels_3HW[:, row : row + 32], colours.turn, colours.colourfulness)
    if not colours.contrast_first and colours.gain != 1:
        pixels_3HW *= np.float32(colours.gain)
        np.minimum(pixels_3HW, 1, out=pixels_3HW)
    return pixels_3HW


@dataclass(frozen=True)
class Colours:
    """What `photometric` does to one image; as it stands, nothing.

    Attributes:
        delta: added. gain: factor of the contrast. contrast_first: whether it comes before saturation and hue.
        colourfulness: factor of the saturation. turn: of the hue, in full circles.
    """

    delta: float = 0.0
    gain: float = 1.0
    colourfulness: float = 1.0
    turn: float = 0.0
    contrast_first: bool = True

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Colours:
        """Each change in every second image."""
        brightness, contrast, saturation, hue = rng.random(4) < 0.5
        contrast_first = bool(rng.random() < 0.5)
        delta, gain, colourfulness, turn = rng.uniform((-32 / 255, 0.5, 0.5, -0.1), (32 / 255, 1.5, 1.5, 0.1)).tolist()
        return cls(
            delta if brightness else 0.0,
            gain if contrast else 1.0,
            colourfulness if saturation else 1.0,
            turn if hue else 0.0,
            contrast_first,
        )

    def numbers(self) -> tuple[float, float, float, float, float]:
        """(delta, gain before, colourfulness, turn, gain after)."""
        before, after = (self.gain, 1.0) if self.contrast_first else (1.0, self.gain)
        return self.delta, before, self.colourfulness, self.turn, after


def shift_colours(pixels_3HW: np.ndarray, turn: float, colourfulness: float) -> None:
    """Add to the hue and multiply the saturation (up to 1) of HSV colours, in place.

    Args:
        pixels_3HW: float32 RGB in [0, 1]. turn: of a full circle, within ±1.
    """
    r, g, b = pixels_3HW
    high = np.maximum(np.maximum(r, g), b)
    chroma = high - np.minimum(np.minimum(r, g), b)
    if turn == 0.0:
        # Saturation is chroma / high, and each channel is high less its share of the chroma.
        ratio = np.minimum(np.float32(colourfulness), high / np.maximum(chroma, np.float32(1e-6)))
        for channel in (r, g, b):
            channel -= high
            channel *= ratio
            channel += high
            np.maximum(channel, 0, out=channel)  # rounding
        return
    scale = np.float32(1) / np.maximum(chroma, np.float32(1e-6))
    # Position on the hexagon, 0 … 6: red at 0, green at 2, blue at 4.
    hue = np.where(high == r, (g - b) * scale, np.where(high == g, (b - r) * scale + 2, (r - g) * scale + 4))
    hue += np.float32(6 * turn)
    np.minimum(chroma * np.float32(colourfulness), high, out=chroma)
    for channel, start in ((r, 5), (g, 3), (b, 1)):
        # How far a channel lies below the highest one, as a share of the chroma: a trapezium over the hexagon.
        np.add(hue, np.float32(start), out=channel)
        channel -= np.floor(channel * np.float32(1 / 6)) * np.float32(6)  # modulo 6, which NumPy does slowly
        np.minimum(channel, np.float32(4) - channel, out=channel)
        np.clip(channel, 0, 1, out=channel)
        channel *= chroma
        np.subtract(high, channel, out=channel)
        np.maximum(channel, 0, out=channel)


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
