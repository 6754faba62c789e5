"""Pictures of a finished run, drawn from its metrics.jsonl: losses, task weights, gradient conflicts.

Nothing is drawn where there is nothing to see: weights of one task, or conflicts where no gradients were compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.drawing import COLOURS, draw_cells, label_axes, legend_beside, line_look, new_figure, save, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]
Row = Mapping[str, Any]

LEGEND_LIMIT = 12
"""Tasks named beside the curves; more would be longer than the picture."""


def write_plots(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what `rows` of a metrics.jsonl have to show into `folder`; returns the files, none if nothing.

    Raises:
        OSError: the files cannot be written.
    """
    written = []
    for name, draw in PLOTS.items():
        figure = draw(rows)
        if figure is not None:
            path = folder / f"{name}.png"
            save(figure, path)
            written.append(path)
    return written


# ---- what the rows hold ----------------------------------------------------------------------------------------------


def curves(rows: Iterable[Row], split: str, metric: str) -> dict[str, Curve]:
    """Task → (steps, values) of a metric, missing values left out."""
    found: dict[str, Curve] = {}
    for row in rows:
        if row["split"] == split and row["metric"] == metric and row["task"] and row["value"] is not None:
            steps, values = found.setdefault(row["task"], ([], []))
            steps.append(row["step"])
            values.append(row["value"])
    return found


def pair_means(rows: Iterable[Row], metric: str) -> dict[tuple[str, str], float]:
    """(task a, task b) → mean over the run's rows of a metric of pairs."""
    found = {}
    for pair, (_, values) in curves(rows, "train", metric).items():
        first, tilde, second = pair.partition("~")
        if tilde:
            found[first, second] = sum(values) / len(values)
    return found


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_losses(rows: Sequence[Row]) -> Figure | None:
    """Training and validation loss of each task, one small axes each: their units differ."""
    train, validation = curves(rows, "train", "loss"), curves(rows, "validation", "loss")
    tasks = [task for task, (steps, _) in train.items() if len(steps) > 1 or task in validation]
    if not tasks:
        return None
    columns = min(4, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = new_figure(max(3.4 * columns, 4.5), 2.6 * lines + 0.4)
    for number, task in enumerate(tasks, start=1):
        axes = figure.add_subplot(lines, columns, number)
        steps, values = train[task]
        axes.plot(steps, values, color=COLOURS[0], linewidth=1.0, label="train")
        if task in validation:
            steps, values = validation[task]
            axes.plot(steps, values, color=COLOURS[1], linewidth=1.4, marker="o", markersize=3, label="validation")
        every = [v for source in (train, validation) if task in source for v in source[task][1]]
        if min(every) > 0 and max(every) > 20 * min(every):
            axes.set_yscale("log")
        label_axes(axes, task, "step", "loss" if (number - 1) % columns == 0 else "")
        if number == 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def draw_weights(rows: Sequence[Row]) -> Figure | None:
    """The coefficient of each task's gradient over the steps, unless none ever changes."""
    found = {task: curve for task, curve in curves(rows, "train", "weight").items() if len(curve[0]) > 1}
    if len(found) < 2 or all(min(values) == max(values) for _, values in found.values()):
        return None
    figure = new_figure(7.0, 4.0)
    axes = figure.add_subplot()
    for number, (task, (steps, values)) in enumerate(found.items()):
        axes.plot(steps, values, linewidth=1.3, label=short(task), **line_look(number))
    every = [v for _, values in found.values() for v in values]
    if min(every) > 0 and max(every) > 50 * min(every):
        axes.set_yscale("log")
    elif min(every) >= 0:
        axes.set_ylim(bottom=0)
    label_axes(axes, "weight of each task's gradient", "step", "weight")
    if len(found) <= LEGEND_LIMIT:
        legend_beside(axes)
    return figure


def draw_conflicts(rows: Sequence[Row]) -> Figure | None:
    """Two maps over pairs of tasks: mean cosine of their gradients, and the share of steps in which it was negative."""
    cosines, conflicts = pair_means(rows, "cosine"), pair_means(rows, "conflict")
    if not cosines:
        return None
    tasks = list(dict.fromkeys(name for pair in cosines for name in pair))
    order = [row["task"] for row in rows if row["metric"] == "loss" and row["task"] in tasks]
    tasks.sort(key=order.index)
    side = max(3.2, 0.55 * len(tasks) + 1.8)
    figure = new_figure(2 * side + 1.0, side + 0.3)
    bound = max(0.05, *(abs(v) for v in cosines.values()))
    _map(figure, figure.add_subplot(1, 2, 1), tasks, cosines, "mean cosine", "RdBu", (-bound, bound), "{:+.2f}")
    _map(figure, figure.add_subplot(1, 2, 2), tasks, conflicts, "share of steps in conflict", "Reds", (0, 1), "{:.0%}")
    return figure


PLOTS: Mapping[str, Callable[[Sequence[Row]], Figure | None]] = {
    "losses": draw_losses,
    "weights": draw_weights,
    "conflicts": draw_conflicts,
}
"""File name without its ending → what draws it."""


def _map(
    figure: Figure,
    axes: Axes,
    tasks: Sequence[str],
    values: Mapping[tuple[str, str], float],
    title: str,
    colours: str,
    limits: tuple[float, float],
    form: str,
) -> None:
    import numpy as np

    grid = np.full((len(tasks), len(tasks)), np.nan)
    for (first, second), value in values.items():
        a, b = tasks.index(first), tasks.index(second)
        grid[a, b] = grid[b, a] = value
    names = [short(task) for task in tasks]
    draw_cells(figure, axes, grid, names, names, title, colours, limits, form)
