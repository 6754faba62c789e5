"""Prediction panels for the page: the newest of one run of each setting, small enough to embed."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

from runner.reporting.read import Run

SMALL = 200_000
"""Bytes; a PNG up to this is taken as it is."""
WIDEST = 1600
MOST_ROWS = 40


def newest(run: Run, suffix: str) -> Path | None:
    """The newest panel file of a run: of the test split where there is one, else of the validation split."""
    for split in ("test", "validation"):
        found = sorted((run.path / "panels").glob(f"{split}-step-*{suffix}"))
        if found:
            return found[-1]
    return None


def embed(path: Path) -> str | None:
    """A `data:` address of a picture, made smaller where it is large; None where it cannot be read."""
    try:
        content, kind = path.read_bytes(), "png"
        if len(content) > SMALL:
            content, kind = _smaller(content), "webp"
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(content: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        picture = image.convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return out.getvalue()


def read_words(path: Path) -> list[list[str]]:
    """The Markdown table of a run's panels in words: heading and rows."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    rows = [line.strip().strip("|") for line in lines if line.startswith("|") and not line.startswith("|---")]
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)] for row in rows[: MOST_ROWS + 1]
    ]
    if cells and cells[0][:2] == ["example", "input"] and all(row[0] == row[1] for row in cells[1:]):
        cells = [[row[0], *row[2:]] for row in cells]  # inputs that have no words, such as a row of numbers
    return cells


def collect(settings: Sequence[tuple[str, Sequence[tuple[int, Run]]]], budget: float) -> tuple[list[dict], int]:
    """Panels of the first run of each setting that has some, in order, until the budget is spent.

    Args:
        settings: label → (number on the page, run). budget: bytes.

    Returns:
        `{run, label, image | words}` for each, and how many settings' panels did not fit.
    """
    found: list[dict] = []
    left_out = 0
    for label, runs in settings if budget > 0 else ():
        for number, run in runs:
            picture, words = newest(run, ".png"), newest(run, ".md")
            if picture is None and words is None:
                continue
            entry: dict = {"run": number, "label": label, "name": (picture or words or run.path).name}
            if picture is not None and (image := embed(picture)):
                entry["image"] = image
            if words is not None:
                entry["words"] = read_words(words)
            size = sum(len(str(value)) for value in entry.values())
            if size > budget:
                left_out += 1
            elif "image" in entry or entry.get("words"):
                budget -= size
                found.append(entry)
            break
    return found, left_out
