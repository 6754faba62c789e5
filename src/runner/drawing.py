"""What the pictures of runs and merges have in common.

matplotlib is imported when the first picture is drawn, and never its state machine (pyplot).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart; with more lines the dashes change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def new_figure(width: float, height: float) -> Figure:
    """An empty picture of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def line_look(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line, for `Axes.plot`."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, a faint grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def legend_beside(axes: Axes) -> None:
    """The names of the lines, right of the picture."""
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_cells(
    figure: Figure,
    axes: Axes,
    grid: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    colours: str,
    limits: tuple[float, float],
    form: str = "{:.2f}",
) -> None:
    """A table as coloured cells with their numbers, as long as they can be read; NaN stays empty.

    Args:
        colours: a colour map of matplotlib. limits: the values at its ends. form: of a number.
    """
    import numpy as np

    image = axes.imshow(grid, cmap=colours, vmin=limits[0], vmax=limits[1])
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, columns), default=0) > 6 else {}
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8, **turned)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(columns) <= 16:
        for (a, b), value in np.ndenumerate(grid):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                text = form.format(value)
                axes.text(b, a, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def short(name: str) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= 20 else name[:19] + "…"
