"""How predictions of the same images change over training: one strip per task, a column per evaluation.

The columns are kept as small pictures under `panels/frames`, so that a run that was stopped goes on with its strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runner.tracking.drawing import BLOCK_GAP, GAP, GREY, INK, LINE, PAPER, picture, write_line
from runner.tracking.panels import Panel

IMAGES, FRAMES = 4, 12
"""Images in a strip, and evaluations: the first and the last, and others evenly between them."""
CELL = 128


def write_strips(folder: Path, step: int, panels: Sequence[Panel]) -> dict[str, Path]:
    """Add an evaluation to the strips in `folder`; task → the strip's file.

    Args:
        folder: of the run's panels. panels: of the evaluation at `step`; those without pictures are left out.

    Raises:
        OSError: the files cannot be written.
    """
    dense = [p for p in panels if not isinstance(p.input, str) and any(not isinstance(r[1], str) for r in p.rows)]
    dense = dense[:IMAGES]
    written = {}
    tasks = dict.fromkeys(task for panel in dense for task, target, _ in panel.rows if not isinstance(target, str))
    for task in tasks:
        rows = [(p, *next(r[1:] for r in p.rows if r[0] == task)) for p in dense if task in {r[0] for r in p.rows}]
        frames = folder / "frames" / task
        frames.mkdir(parents=True, exist_ok=True)
        for later in frames.glob("step-*.png"):  # of a run that went back to a checkpoint
            if int(later.stem.removeprefix("step-")) > step:
                later.unlink()
        _save(_column([p.input for p, _, _ in rows]), frames / "input.png")
        _save(_column([target for _, target, _ in rows]), frames / "target.png")
        _save(_column([predicted for _, _, predicted in rows]), frames / f"step-{step:08d}.png")
        written[task] = folder / f"strip-{task}.png"
        _save(_strip(task, frames), written[task])
    return written


def _column(shown: Sequence[np.ndarray | str]) -> Image.Image:
    pictures = [picture(value, CELL) for value in shown]
    column = Image.new("RGB", (max(p.width for p in pictures), sum(p.height + GAP for p in pictures) - GAP), PAPER)
    y = 0
    for part in pictures:
        column.paste(part, (0, y))
        y += part.height + GAP
    return column


def _strip(task: str, frames: Path) -> Image.Image:
    steps = sorted(frames.glob("step-*.png"))
    if len(steps) > FRAMES:
        steps = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, FRAMES)]
    named = [("input", frames / "input.png"), ("target", frames / "target.png")]
    named += [(f"step {int(path.stem.removeprefix('step-')):,}", path) for path in steps]
    columns = []
    for name, path in named:
        with Image.open(path) as file:
            columns.append((name, file.convert("RGB")))
    width = sum(c.width + GAP for _, c in columns) + 2 * BLOCK_GAP
    height = max(c.height for _, c in columns) + 2 * LINE + 2 * BLOCK_GAP
    strip = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(strip)
    write_line(pen, (BLOCK_GAP, BLOCK_GAP), f"{task} over training", width, INK)
    x = BLOCK_GAP
    for name, column in columns:
        write_line(pen, (x, BLOCK_GAP + LINE), name, column.width, GREY)
        strip.paste(column, (x, BLOCK_GAP + 2 * LINE))
        x += column.width + GAP
    return strip


def _save(image: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    image.save(temporary, format="PNG")
    temporary.replace(path)
