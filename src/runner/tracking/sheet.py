"""Drawing panels with Pillow: one block per example, blocks flow into a sheet.

A block with dense tasks has one column per task, the target above the prediction, and the input at the left:

    id                 segmentation   depth
    [input]  target    [      ]       [      ]
    words    prediction[      ]       [      ]
             error     [      ]       [      ]

What the colours mean stands at the foot of the sheet, see `runner.tracking.legends`.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from runner.tracking.drawing import BLOCK_GAP, GAP, GREY, INK, LINE, PAPER, picture, upright, write_line
from runner.tracking.legends import draw_legends
from runner.tracking.panels import Panel

CELL, CARD = 192, 128  # longer side of a picture in pixels, with dense tasks and without; enlarged by whole factors
WORDS = 176  # room for a line of words
WIDTH = 2200  # of a sheet, unless one block is wider


def draw_sheet(panels: Sequence[Panel]) -> Image.Image:
    """All panels on one sheet, in their order.

    Args:
        panels: at least one; each with at least one picture.
    """
    rows: list[list[Image.Image]] = [[]]
    for block in map(_draw_block, panels):
        if rows[-1] and sum(b.width + BLOCK_GAP for b in rows[-1]) + block.width > WIDTH:
            rows.append([])
        rows[-1].append(block)
    width = max(sum(b.width + BLOCK_GAP for b in row) for row in rows) + BLOCK_GAP
    foot = draw_legends(panels, width - 2 * BLOCK_GAP)
    height = sum(max(b.height for b in row) + BLOCK_GAP for row in rows) + BLOCK_GAP
    height += foot.height + BLOCK_GAP if foot is not None else 0
    sheet = Image.new("RGB", (width, height), PAPER)
    y = BLOCK_GAP
    for row in rows:
        x = BLOCK_GAP
        for block in row:
            sheet.paste(block, (x, y))
            x += block.width + BLOCK_GAP
        y += max(b.height for b in row) + BLOCK_GAP
    if foot is not None:
        sheet.paste(foot, (BLOCK_GAP, y))
    return sheet


def _draw_block(panel: Panel) -> Image.Image:
    longest = CELL if any(not isinstance(row[1], str) for row in panel.rows) else CARD
    dense = [
        (task, [picture(shown, longest) for shown in (a, b, *([panel.errors[task]] if task in panel.errors else []))])
        for task, a, b in panel.rows
        if not isinstance(a, str)
    ]
    lines = max((len(column) for _, column in dense), default=0)
    source = None if isinstance(panel.input, str) else picture(panel.input, longest)
    words = [(panel.input, INK)] if isinstance(panel.input, str) else []
    for task, target, prediction in panel.rows:
        if isinstance(target, str):
            words += [(task, GREY), (f"target: {target}", INK), (f"predicted: {prediction}", INK)]
    pictures = [shown for _, column in dense for shown in column] + ([source] if source else [])
    cell_w = max(WORDS if words else CARD, *(p.width for p in pictures))
    cell_h = max(p.height for p in pictures)

    tall = LINE + lines * (cell_h + GAP) if dense else 0
    left = LINE + (source.height + GAP if source else 0) + LINE * len(words)
    gutter = LINE if dense else 0
    block = Image.new("RGB", (cell_w + gutter + len(dense) * (cell_w + GAP), max(tall, left)), PAPER)
    draw = ImageDraw.Draw(block)
    write_line(draw, (0, 0), panel.id, cell_w, GREY, cut_front=True)
    y = LINE
    if source is not None:
        block.paste(source, (0, y))
        y += source.height + GAP
    for line, ink in words:
        write_line(draw, (0, y), line, cell_w, ink)
        y += LINE
    if dense:
        for row, label in enumerate(("target", "prediction", "error")[:lines]):
            block.paste(upright(label, cell_h), (cell_w, LINE + row * (cell_h + GAP)))
    for place, (task, column) in enumerate(dense):
        x = cell_w + gutter + place * (cell_w + GAP)
        write_line(draw, (x, 0), task, cell_w, INK)
        for row, shown in enumerate(column):
            block.paste(shown, (x, LINE + row * (cell_h + GAP)))
    return block
