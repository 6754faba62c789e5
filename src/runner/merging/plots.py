"""Pictures of what a merge looked at: tables over pairs and layers, curves over a coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.drawing import draw_cells, label_axes, legend_beside, line_look, new_figure, save


def heat_map(
    path: Path,
    table: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x_name: str = "",
    y_name: str = "",
) -> None:
    """A table as coloured cells with their numbers: blue below zero, red above, white at zero."""
    import numpy as np

    grid = np.asarray(table, dtype=float)
    largest = float(np.nanmax(np.abs(grid), initial=0.0)) or 1.0
    names = 0.075 * max(map(len, rows))
    figure = new_figure(names + 0.55 * len(columns) + 1.4, 0.28 * len(rows) + (1.7 if y_name or len(rows) > 8 else 1.3))
    axes = figure.add_subplot()
    draw_cells(figure, axes, grid, rows, columns, title, "RdBu_r", (-largest, largest))
    axes.set_aspect("auto")
    axes.set_xlabel(x_name, fontsize=8)
    axes.set_ylabel(y_name, fontsize=8)
    save(figure, path)


def curves(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], x_name: str, title: str) -> None:
    """Several curves over one axis, with a legend; points that are not finite leave a gap."""
    figure = new_figure(7.0, max(3.2, 0.2 * len(lines) + 0.8))
    axes = figure.add_subplot()
    for number, (name, line) in enumerate(lines.items()):
        xs, ys = zip(*line, strict=True) if line else ((), ())
        axes.plot(xs, ys, marker="o", markersize=2.5, linewidth=1.3, label=name, **line_look(number))
    label_axes(axes, title, x_name, "")
    legend_beside(axes)
    save(figure, path)
