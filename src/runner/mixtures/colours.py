"""Random changes of an image's colours: brightness, contrast, saturation and hue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS = 64
"""So many rows of an image at a time, with what is computed of them, stay in the processor's cache."""


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

    def change(self, pixels_3HW: np.ndarray) -> None:
        """Change an RGB image, or a part of one (float32 in [0, 1]), in place."""
        delta, before, colourfulness, turn, after = self.numbers()
        if delta:
            pixels_3HW += np.float32(delta)
            np.clip(pixels_3HW, 0, 1, out=pixels_3HW)
        if before != 1:
            _multiply(pixels_3HW, before)
        if colourfulness != 1 or turn:
            shift_colours(pixels_3HW, turn, colourfulness)
        if after != 1:
            _multiply(pixels_3HW, after)


def photometric(pixels_3HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness ±32/255, contrast ×0.5…1.5, saturation ×0.5…1.5, hue ±36°, each with probability ½; in place.

    Contrast comes before or after saturation and hue, at random. Liu et al. 2016 (SSD, arXiv 1512.02325, section 2.2
    and code), with the constants that mmsegmentation and InvPT use; here without rounding to 8 bits in between.

    Args:
        pixels_3HW: float32 in [0, 1].
    """
    colours = Colours.draw(rng)
    for row in range(0, pixels_3HW.shape[1], ROWS):
        colours.change(pixels_3HW[:, row : row + ROWS])
    return pixels_3HW


def _multiply(pixels_3HW: np.ndarray, gain: float) -> None:
    pixels_3HW *= np.float32(gain)
    if gain > 1:
        np.clip(pixels_3HW, 0, 1, out=pixels_3HW)


def shift_colours(pixels_3HW: np.ndarray, turn: float, colourfulness: float) -> None:
    """Add to the hue and multiply the saturation (up to 1) of HSV colours, in place.

    A channel lies below the highest one by chroma × clip(d - 1, 0, 1), where d, 0 … 3, is how many sixths of the circle
    its own hue (red, green, blue) is away. Of the colour as it is, chroma × (d - 1) is the sum of the highest and the
    middle channel less twice this one; a turn adds to d on one side of the channel's hue and takes from it on the
    other, and the second largest channel says which side that is. Turns of less than a sixth never reach the places
    where d turns back (0 and 3) from where clip would notice.

    Args:
        pixels_3HW: float32 RGB in [0, 1]. turn: of a full circle, within ±1/6.
    """
    r, g, b = pixels_3HW
    high, low, total, one = (np.empty_like(r) for _ in range(4))
    np.maximum(np.maximum(r, g, out=high), b, out=high)
    np.minimum(np.minimum(r, g, out=low), b, out=low)
    chroma = high - low
    ratio = None
    if colourfulness != 1:  # new chroma / chroma, so that saturation stays within 1
        ratio = np.maximum(chroma, np.full_like(r, 1e-6))  # with an array: NumPy is slow with a scalar here
        np.divide(high, ratio, out=ratio)
        np.minimum(ratio, np.full_like(r, colourfulness), out=ratio)
    nothing = np.zeros_like(r)
    if turn == 0.0:
        for channel in (r, g, b):
            channel -= high
            if ratio is not None:
                channel *= ratio
            channel += high
            np.maximum(channel, nothing, out=channel)  # rounding
        return
    np.add(r, g, out=total)
    total += b
    total -= low
    step = (chroma * np.float32(abs(6 * turn))).view(np.int32)
    sign = np.int32(np.iinfo(np.int32).min)
    ahead = (g - b, b - r, r - g) if turn > 0 else (b - g, r - b, g - r)
    for channel, side in zip((r, g, b), ahead, strict=True):
        bits = side.view(np.int32)  # step with the sign of side
        bits &= sign
        bits |= step
        np.subtract(total, channel, out=one)
        one -= channel
        one += side
        np.maximum(one, nothing, out=one)
        np.minimum(one, chroma, out=one)
        if ratio is not None:
            one *= ratio
        np.subtract(high, one, out=channel)
        if ratio is not None:
            np.maximum(channel, nothing, out=channel)  # rounding
