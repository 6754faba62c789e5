"""Pictures of a finished run, drawn from its metrics.jsonl: losses, task weights, gradient conflicts.

Nothing is drawn where there is nothing to see: weights of one task, or conflicts where no gradients were compared.
matplotlib is imported when the first picture is drawn, and never its state machine (pyplot).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]
Row = Mapping[str, Any]

# Okabe and Ito's colours, which colour-blind people can tell apart; with more tasks the dashes change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
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
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.png"
            temporary = path.with_name(f".{path.name}")
            figure.savefig(temporary, format="png", dpi=120)
            temporary.replace(path)
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
    figure = _figure(max(3.4 * columns, 4.5), 2.6 * lines + 0.4)
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
        _style(axes, task, "step", "loss" if (number - 1) % columns == 0 else "")
        if number == 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def draw_weights(rows: Sequence[Row]) -> Figure | None:
    """The coefficient of each task's gradient over the steps, unless none ever changes."""
    found = {task: curve for task, curve in curves(rows, "train", "weight").items() if len(curve[0]) > 1}
    if len(found) < 2 or all(min(values) == max(values) for _, values in found.values()):
        return None
    figure = _figure(7.0, 4.0)
    axes = figure.add_subplot()
    for number, (task, (steps, values)) in enumerate(found.items()):
        style = DASHES[number // len(COLOURS) % len(DASHES)]
        axes.plot(
            steps, values, linestyle=style, color=COLOURS[number % len(COLOURS)], linewidth=1.3, label=_short(task)
        )
    every = [v for _, values in found.values() for v in values]
    if min(every) > 0 and max(every) > 50 * min(every):
        axes.set_yscale("log")
    elif min(every) >= 0:
        axes.set_ylim(bottom=0)
    _style(axes, "weight of each task's gradient", "step", "weight")
    if len(found) <= LEGEND_LIMIT:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
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
    figure = _figure(2 * side + 1.0, side + 0.3)
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
    image = axes.imshow(grid, cmap=colours, vmin=limits[0], vmax=limits[1])
    names = [_short(task) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(tasks)), names, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(tasks) <= 16:  # more figures than this cannot be read
        for (a, b), value in np.ndenumerate(grid):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                text = form.format(value)
                axes.text(b, a, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _short(task: str) -> str:
    return task if len(task) <= 20 else task[:19] + "…"
