"""Drawing with Pillow: what sheets, legends and strips share."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runner.tracking.panels import Shown

GAP, BLOCK_GAP, LINE = 4, 20, 17
INK, GREY, PAPER = (28, 28, 30), (110, 110, 116), (255, 255, 255)


def picture(pixels_HW3: Shown, longest: int) -> Image.Image:
    """A picture with a longer side of about `longest`: shrunk smoothly, or enlarged without inventing anything."""
    if isinstance(pixels_HW3, str) or pixels_HW3.dtype != np.uint8 or pixels_HW3.ndim != 3:
        raise TypeError("a picture is an array (H, W, 3) of uint8; target and prediction are of one kind")
    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    longer = max(image.size)
    if longer > longest:
        width, height = (max(1, round(side * longest / longer)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    factor = longest // longer
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one font of all pictures."""
    return ImageFont.load_default(13)


def write_line(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    ink: tuple[int, int, int],
    cut_front: bool = False,
) -> None:
    """One line; what does not fit is cut at the end, or at the front where the end tells more."""
    text = shown = " ".join(text.split())
    while text and draw.textlength(shown, font=font()) > width:
        text = text[1:] if cut_front else text[:-1]
        shown = "…" + text if cut_front else text + "…"
    draw.text(at, shown, fill=ink, font=font())


def upright(text: str, height: int) -> Image.Image:
    """A label that reads upwards, centred beside a picture of this height."""
    label = Image.new("RGB", (height, LINE), PAPER)
    draw = ImageDraw.Draw(label)
    draw.text((max(0, (height - draw.textlength(text, font=font())) / 2), 0), text, fill=GREY, font=font())
    return label.transpose(Image.Transpose.ROTATE_90)
