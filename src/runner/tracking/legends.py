"""Legends below a sheet: a line per task, with the classes that occur in it, or a bar of colours with its two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from runner.legend import Legend
from runner.tracking.drawing import GAP, GREY, INK, LINE, PAPER, font, write_line
from runner.tracking.panels import Panel

MOST = 24
"""Swatches of one task; the classes that cover most come first."""
BOX, BAR = 11, 96
NAME = 132


def draw_legends(panels: Sequence[Panel], width: int) -> Image.Image | None:
    """The legends of all panels of a sheet; None where there is nothing to explain."""
    return draw(merge([panel.legends for panel in panels]), width)


def merge(legends: Sequence[Mapping[str, tuple[Legend, Legend]]]) -> dict[str, tuple[Legend, Legend]]:
    """One legend per task: the swatches of all, those first that come first most often."""
    merged: dict[str, tuple[Legend, Legend]] = {}
    for task in dict.fromkeys(name for part in legends for name in part):
        found = [part[task] for part in legends if task in part]
        weight: dict[tuple[str, tuple[int, int, int]], float] = {}
        for own, _ in found:
            for place, swatch in enumerate(own.swatches):
                weight[swatch] = weight.get(swatch, 0.0) + 1 / (1 + place)
        own, error = found[0]
        swatches = tuple(sorted(weight, key=lambda s: -weight[s]))
        merged[task] = Legend(swatches, own.bar, own.low, own.high, own.words), error
    return merged


def draw(legends: Mapping[str, tuple[Legend, Legend]], width: int) -> Image.Image | None:
    """A picture of this width with the legends of every task below one another; None where there is nothing to say."""
    lines = [
        (label, legend)
        for task, (own, error) in legends.items()
        for label, legend in ((task, own), (f"{task} error", error))
        if legend.swatches or legend.bar is not None
    ]
    if not lines:
        return None
    canvas = Image.new("RGB", (max(width, NAME + 2 * BAR), len(lines) * (MOST + 1) * LINE), PAPER)
    pen = ImageDraw.Draw(canvas)
    y = 0
    for label, legend in lines:
        write_line(pen, (0, y), label, NAME - GAP, GREY)
        y = _entries(canvas, pen, legend, y)
    return canvas.crop((0, 0, canvas.width, y))


def _entries(canvas: Image.Image, pen: ImageDraw.ImageDraw, legend: Legend, y: int) -> int:
    """Draw the entries of one legend from line y on; the next free line."""
    x = NAME
    if legend.bar is not None:
        pen.text((x, y), legend.low, fill=INK, font=font())
        x += int(pen.textlength(legend.low, font=font())) + 2 * GAP
        bar = Image.fromarray(np.ascontiguousarray(legend.bar[None])).resize((BAR, BOX), Image.Resampling.BILINEAR)
        canvas.paste(bar, (x, y + 3))
        pen.text((x + BAR + 2 * GAP, y), legend.high, fill=INK, font=font())
        return y + LINE
    shown = [*legend.swatches[:MOST]]
    rest = len(legend.swatches) - len(shown)
    for name, colour in [*shown, *([(f"and {rest} more", None)] if rest else [])]:
        needed = BOX + GAP + int(pen.textlength(name, font=font())) + 3 * GAP
        if x + needed > canvas.width and x > NAME:
            x, y = NAME, y + LINE
        if colour is not None:
            pen.rectangle((x, y + 3, x + BOX - 1, y + 2 + BOX), fill=colour, outline=GREY)
        pen.text((x + BOX + GAP, y), name, fill=INK if colour is not None else GREY, font=font())
        x += needed
    return y + LINE
