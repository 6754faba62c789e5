"""Numbers, times and paths for people, and the final result as a table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

GLUE = "\ue000"
"""Printed as a space, but a line is not broken there; rich breaks lines at every real space, no-break ones too."""


def number(value: float | None) -> str:
    """A metric in four significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "nan"
    if isinstance(value, float) and not math.isinf(value) and value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """1:02:03, 4:05; "?" where it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shell_path(path: Path) -> str:
    """A path to paste into a shell: relative where it lies below the current directory, and quoted."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def arrow(direction: str | None, ascii_only: bool) -> str:
    """`↑` where more is better, `↓` where less is, nothing where it is not known."""
    arrows = {"up": "^", "down": "v"} if ascii_only else {"up": "↑", "down": "↓"}
    return arrows.get(direction or "", "")


def result_table(
    tasks: Mapping[str, Mapping[str, float]],
    *,
    split: str,
    headlines: Mapping[str, str],
    directions: Mapping[str, Mapping[str, str]],
    ascii_only: bool = False,
) -> Table:
    """One row per task: its headline metric, bold, and the others.

    Args:
        tasks: task → metric → value. split: where they come from, for the title.
        headlines: task → name of its headline metric. directions: task → metric → "up" or "down".
        ascii_only: for a terminal that cannot show arrows.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def cell(task: str, metric: str) -> str:
        # "loss" is nobody's metric, but less of it is always better.
        direction = directions.get(task, {}).get(metric, "down" if metric == "loss" else None)
        sign = arrow(direction, ascii_only)
        return f"{metric} {number(tasks[task][metric])}" + (f" {sign}" if sign else "")

    table = Table(
        title=f"result ({split})" if split else "result",
        title_justify="left",
        title_style="bold",
        box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD,
    )
    table.add_column("task", no_wrap=True)
    table.add_column("headline", no_wrap=True, style="bold")
    table.add_column("other metrics")
    for task, metrics in tasks.items():
        headline = headlines.get(task, "")
        others = [cell(task, metric) for metric in metrics if metric != headline]
        shown = cell(task, headline) if headline in metrics else ""
        table.add_row(Text(task), Text(shown), Text("   ".join(text.replace(" ", GLUE) for text in others)))
    return table


def delta_lines(result: Mapping[str, Any], ascii_only: bool = False) -> list[str]:
    """`Δm against single-task runs   metric_mean +1.2 % ↓   …`: every definition, its arrow says which sign is good."""
    deltas = result.get("delta_m")
    if not deltas:
        return []
    from runner.reporting.delta_m import RULES

    name = "delta_m" if ascii_only else "Δm"
    parts = [f"{name} against {result['baseline_from']}"]
    for definition, value in deltas.items():
        good = arrow("up" if RULES[definition].better == "higher" else "down", ascii_only)
        parts.append(f"{definition} {'undefined' if value is None else f'{value:+.2f} % {good}'}")
    return ["   ".join(parts)]


def reference_lines(result: Mapping[str, Any]) -> list[str]:
    """`published   depth abs_err 0.375   …`: what the configuration quotes to compare with."""
    given = result.get("reference") or {}
    parts = [
        f"{task} " + " ".join(f"{metric} {number(value)}" for metric, value in metrics.items())
        for task, metrics in given.items()
    ]
    return ["   ".join(["published", *parts])] if parts else []


def summary_line(result: Mapping[str, Any]) -> str:
    """`completed   200 steps   in 0:41   39.2 examples/s   peak 812 MB   1.2 M parameters` from what `result` has."""
    parts = [str(result["status"]).lower()] if result.get("status") else []
    if result.get("steps") is not None:
        parts.append(f"{result['steps']} steps")
    if result.get("wall_s") is not None:
        parts.append(f"in {duration(result['wall_s'])}")
    if result.get("examples_per_s") is not None:
        parts.append(f"{result['examples_per_s']:.4g} examples/s")
    if result.get("peak_memory_mb") is not None:
        parts.append(f"peak {result['peak_memory_mb']:.0f} MB")
    parameters = result.get("parameters")
    if isinstance(parameters, Mapping):
        parameters = parameters.get("total")
    if parameters is not None:
        parts.append(f"{parameters / 1e6:.4g} M parameters" if parameters >= 1e6 else f"{parameters:,} parameters")
    return "   ".join(parts)
