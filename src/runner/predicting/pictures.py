"""Reading pictures that a person gives, and writing what a model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from runner.errors import RunFailed, UserError
from runner.legend import Legend
from runner.tasks.base import Task
from runner.tracking.drawing import BLOCK_GAP, GAP, GREY, INK, LINE, PAPER, write_line
from runner.tracking.legends import draw

SHOWN = 480
"""Longer side of a picture on the sheet."""

OPACITY = 0.55


def folders(paths: Sequence[Path], given: Path, to: Path) -> list[Path]:
    """Where the results of each picture go: a folder by its name below `to`, with its type where two share a name."""
    base = given if given.is_dir() else given.parent
    plain = [to / path.relative_to(base).with_suffix("") for path in paths]
    return [
        f if plain.count(f) == 1 else f.with_name(f"{f.name}_{p.suffix[1:]}") for f, p in zip(plain, paths, strict=True)
    ]


def read(path: Path) -> Image.Image:
    """A picture as RGB, turned the way a camera held it.

    Raises:
        UserError: it is no picture, or is damaged.
    """
    try:
        with Image.open(path) as file:
            turned = ImageOps.exif_transpose(file)
            if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:  # on white, as it is looked at
                whole = turned.convert("RGBA")
                white = Image.new("RGBA", whole.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, whole).convert("RGB")
            if turned.mode.startswith(("I", "F")):
                values = np.asarray(turned, np.float64)
                low, high = float(values.min()), float(values.max())
                grey = (values - low) / max(high - low, 1e-9) * 255
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            return turned.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"'{path}' is not a picture that can be read: {error}", "give JPEG, PNG, WebP, BMP or TIFF"
        ) from error


def write(
    folder: Path,
    name: str,
    image: Image.Image,
    predictions: Mapping[str, np.ndarray],
    tasks: Mapping[str, Task],
    raw: bool,
) -> None:
    """Write a picture's files, see `runner predict --help`.

    Args:
        name: of the picture, on the sheet. predictions: task → raw prediction (C, H, W) at the picture's size.

    Raises:
        RunFailed: they cannot be written.
    """
    shown: dict[str, Image.Image] = {}
    legends: dict[str, tuple[Legend, Legend]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, prediction in predictions.items():
            values = tasks[task].values(prediction)
            coloured = Image.fromarray(tasks[task].render(prediction, True))
            shown[task], legends[task] = coloured, (tasks[task].legend([values]), Legend())
            coloured.save(folder / f"{task}.png")
            if raw:
                np.save(folder / f"{task}.npy", values)
            over = overlay(image, coloured, values, tasks[task])
            if over is not None:
                over.save(folder / f"{task}_overlay.png")
        sheet(name, image, shown, legends).save(folder / "sheet.png")
    except OSError as error:
        raise RunFailed(f"'{folder}' cannot be written: {error}", "choose another place with --to DIR") from error


def overlay(image: Image.Image, coloured: Image.Image, values: np.ndarray, task: Task) -> Image.Image | None:
    """Classes laid over the picture; probabilities (edges, saliency) as red in it; None for what covers all of it."""
    if task.loss_kind != "classification":
        return None
    if values.dtype.kind == "u":
        return Image.blend(image, coloured, OPACITY)
    if values.ndim == 2:
        red = Image.new("RGB", image.size, (230, 30, 50))
        return Image.composite(red, image, Image.fromarray((values * 235).astype(np.uint8)))
    return None


def sheet(
    name: str, image: Image.Image, shown: Mapping[str, Image.Image], legends: Mapping[str, tuple[Legend, Legend]]
) -> Image.Image:
    """The picture and its predictions side by side, three in a row, with their legends below."""
    cells = [(name, image), *shown.items()]
    zoom = min(SHOWN / max(image.size), max(1.0, SHOWN // max(image.size)))
    size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    width = columns * (size[0] + GAP) - GAP + 2 * BLOCK_GAP
    foot = draw(legends, width - 2 * BLOCK_GAP)
    height = (
        BLOCK_GAP + rows * (LINE + size[1] + GAP) + BLOCK_GAP + (foot.height + BLOCK_GAP if foot is not None else 0)
    )
    canvas = Image.new("RGB", (max(width, (foot.width if foot is not None else 0) + 2 * BLOCK_GAP), height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, (label, picture) in enumerate(cells):
        x = BLOCK_GAP + (i % columns) * (size[0] + GAP)
        y = BLOCK_GAP + (i // columns) * (LINE + size[1] + GAP)
        write_line(pen, (x, y), label, size[0], INK if i else GREY)
        smooth = Image.Resampling.LANCZOS if zoom < 1 else Image.Resampling.NEAREST
        canvas.paste(picture.resize(size, smooth), (x, y + LINE))
    if foot is not None:
        canvas.paste(foot, (BLOCK_GAP, height - foot.height - BLOCK_GAP))
    return canvas
