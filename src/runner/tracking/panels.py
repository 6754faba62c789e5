"""Prediction panels: what went in, what should come out, what came out.

Pictures of one evaluation become one PNG sheet, examples in words one Markdown table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runner.files import write_atomic
from runner.legend import Legend

Shown = np.ndarray | str
"""A picture (H, W, 3) uint8, or words."""


@dataclass(frozen=True)
class Panel:
    """One example.

    Attributes:
        id: the example's readable id.
        input: what the model saw.
        rows: (task, target, prediction); both of one kind.
        errors: task → picture of what is wrong with the prediction.
        legends: task → what the colours of target and prediction mean, and those of the error.
    """

    id: str
    input: Shown
    rows: Sequence[tuple[str, Shown, Shown]]
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    legends: Mapping[str, tuple[Legend, Legend]] = field(default_factory=dict)

    @property
    def has_picture(self) -> bool:
        """Whether anything in it is a picture."""
        return not isinstance(self.input, str) or any(not isinstance(row[1], str) for row in self.rows)


def write_panels(folder: Path, stem: str, panels: Sequence[Panel]) -> Path | None:
    """Write `stem.png` for panels with pictures and `stem.md` for what is in words; returns the PNG's path, if any.

    Raises:
        OSError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [panel for panel in panels if panel.has_picture]
    words = [panel for panel in panels if not panel.has_picture]
    if words:
        write_atomic(folder / f"{stem}.md", markdown(words))
    if not pictures:
        return None
    from runner.tracking.sheet import draw_sheet  # Pillow is needed for pictures only

    path = folder / f"{stem}.png"
    temporary = path.with_name(f".{path.name}")
    draw_sheet(pictures).save(temporary, format="PNG")
    temporary.replace(path)
    return path


def text_rows(panels: Sequence[Panel]) -> list[tuple[str, str, str, str, str]]:
    """(example, input, task, target, prediction) for everything in words; a picture as input is left empty."""
    return [
        (panel.id, panel.input if isinstance(panel.input, str) else "", task, target, prediction)
        for panel in panels
        for task, target, prediction in panel.rows
        if isinstance(target, str) and isinstance(prediction, str)
    ]


def markdown(panels: Sequence[Panel]) -> str:
    """A Markdown table with one row per example and task."""

    def clean(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    lines = ["| example | input | task | target | prediction |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(map(clean, row)) + " |" for row in text_rows(panels)]
    return "\n".join(lines) + "\n"
