"""Small pictures of tables and curves, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_INK, _FAINT, _PAPER = (40, 40, 40), (200, 200, 200), (255, 255, 255)
_LINES = (
    (31, 119, 180), (214, 95, 14), (44, 140, 60), (190, 40, 60), (120, 90, 180),
    (120, 80, 60), (220, 110, 180), (110, 110, 110), (160, 160, 30), (20, 160, 180),
)  # fmt: skip


def heat_map(
    path: Path, table: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """A table as coloured cells with their numbers: blue below zero, red above, white at zero."""
    font = ImageFont.load_default(13)
    cell_w = max(58, *(int(font.getlength(c)) + 12 for c in columns))
    cell_h, left, top = 26, int(max(font.getlength(r) for r in rows)) + 18, 54
    image = Image.new("RGB", (left + cell_w * len(columns) + 12, top + cell_h * len(rows) + 12), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 8), title, _INK, font)
    largest = max((abs(v) for row in table for v in row if math.isfinite(v)), default=1.0) or 1.0
    for j, name in enumerate(columns):
        draw.text((left + j * cell_w + cell_w // 2, top - 8), name, _INK, font, anchor="mb")
    for i, name in enumerate(rows):
        draw.text((left - 8, top + i * cell_h + cell_h // 2), name, _INK, font, anchor="rm")
        for j, value in enumerate(table[i]):
            box = (left + j * cell_w, top + i * cell_h, left + (j + 1) * cell_w - 2, top + (i + 1) * cell_h - 2)
            draw.rectangle(box, _shade(value / largest))
            ink = _PAPER if abs(value / largest) > 0.75 else _INK
            draw.text(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2), f"{value:.2f}", ink, font, anchor="mm")
    _save(image, path)


def curves(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], x_name: str, title: str) -> None:
    """Several curves over one axis, with a legend."""
    font = ImageFont.load_default(13)
    width, height, left, top, bottom = 560, 300, 64, 34, 40
    legend = int(max(font.getlength(name) for name in lines)) + 40
    image = Image.new("RGB", (width + legend, max(height, top + 18 * len(lines) + 10)), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 8), title, _INK, font)
    points = [(x, y) for line in lines.values() for x, y in line if math.isfinite(y)]
    if not points:
        _save(image, path)
        return
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (width - left - 16),
            height - bottom - (y - y0) / (y1 - y0) * (height - bottom - top),
        )

    for n in range(5):
        y, x = y0 + n / 4 * (y1 - y0), x0 + n / 4 * (x1 - x0)
        draw.line((*at(x0, y), *at(x1, y)), _FAINT)
        draw.text((left - 8, at(x0, y)[1]), f"{y:.3g}", _INK, font, anchor="rm")
        draw.text((at(x, y0)[0], height - bottom + 6), f"{x:.3g}", _INK, font, anchor="mt")
    draw.text(((left + width) // 2, height - 14), x_name, _INK, font, anchor="mm")
    for n, (name, line) in enumerate(lines.items()):
        colour = _LINES[n % len(_LINES)]
        drawn = [at(x, y) for x, y in line if math.isfinite(y)]
        if len(drawn) > 1:
            draw.line(drawn, colour, 2)
        for x, y in drawn:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
        draw.line((width + 4, top + 18 * n + 8, width + 24, top + 18 * n + 8), colour, 3)
        draw.text((width + 30, top + 18 * n), name, _INK, font)
    _save(image, path)


def _shade(share: float) -> tuple[int, int, int]:
    if not math.isfinite(share):
        return _FAINT
    strength = min(abs(share), 1.0)
    target = (178, 30, 45) if share > 0 else (30, 80, 170)
    red, green, blue = (round(255 + (channel - 255) * strength) for channel in target)
    return red, green, blue


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    image.save(temporary, format="PNG")
    temporary.replace(path)
