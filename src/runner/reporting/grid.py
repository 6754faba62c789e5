"""A table as columns and cells of text, for every format that is not a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runner.errors import UserError, suggest
from runner.reporting.costs import COSTS
from runner.reporting.delta_m import RULES
from runner.reporting.merges import COLUMNS
from runner.reporting.model import Metric, Row, Table
from runner.tracking.table import duration

Group = Literal["parameters", "metrics", "merge", "delta", "rank", "cost"]
HIGHER = {"higher": "up", "lower": "down"}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: into a row's samples, or the name of a parameter. group: what kind of column it is.
        over, head: two lines of heading, such as the task and its metric. better: "up", "down" or "".
        decimals: of its numbers.
    """

    key: str
    group: Group
    over: str
    head: str
    better: str = ""
    decimals: int = 0


@dataclass(frozen=True)
class Cell:
    """Mean and deviation as text (empty where there is none), and the verdict's mark."""

    mean: str
    std: str = ""
    mark: str = ""


def choose_metrics(table: Table, asked: str) -> list[Metric]:
    """The metrics of a table that are shown.

    Args:
        asked: "headline", "all", or names such as "miou,depth/rmse".

    Raises:
        UserError: no task has such a metric.
    """
    if asked == "headline":
        return table.headlines
    if asked == "all":
        return table.metrics
    words = [word.strip() for word in asked.split(",") if word.strip()]
    known = {metric.key for metric in table.metrics} | {metric.name for metric in table.metrics}
    for word in words:
        if word not in known:
            raise UserError(f"--metrics: no task has a metric '{word}'", suggest(word, [*known, "all", "headline"]))
    return [metric for metric in table.metrics if metric.key in words or metric.name in words]


def make_columns(table: Table, metrics: Sequence[Metric], definitions: Sequence[str]) -> list[Column]:
    """All columns: parameters, n, what merges are judged by, metrics, Δm, rank, cost."""
    names = table.columns.names or ["setting"]
    columns = [Column(name, "parameters", "", name) for name in names]
    columns.append(Column("n", "parameters", "", "n"))
    for key, (head, better, decimals) in COLUMNS.items():
        if any(key in row.samples for row in table.rows):
            columns.append(Column(key, "merge", "merge", head, better, decimals))
    for metric in metrics:
        columns.append(
            Column(metric.key, "metrics", metric.task, metric.name, metric.better, _decimals(table, metric.key))
        )
    for name in definitions:
        if name in table.definitions:
            columns.append(Column(f"Δm/{name}", "delta", "Δm %", name, HIGHER[RULES[name].better], 2))
    if any(math.isfinite(row.rank) for row in table.rows):
        columns.append(Column("rank", "rank", "", "mean rank", "down"))
    for name, head in COSTS.items():
        if any(name in row.samples for row in table.rows):
            columns.append(Column(name, "cost", "", head))
    return columns


def _decimals(table: Table, key: str) -> int:
    """Four significant digits of the column's largest value, so that all its numbers line up."""
    largest = max((abs(row.spreads[key].mean) for row in table.rows if key in row.spreads), default=0.0)
    if not math.isfinite(largest) or largest == 0:
        return 4
    return min(6, max(0, 3 - math.floor(math.log10(largest))))


def make_cell(row: Row, column: Column) -> Cell:
    """What stands in one place."""
    if column.group == "parameters":
        return _parameter(row, column)
    if column.group == "rank":
        return Cell(f"{row.rank:.2f}" if math.isfinite(row.rank) else "")
    spread = row.spreads.get(column.key)
    if spread is None:
        return Cell("")
    if column.group == "cost":
        return Cell(cost_text(column.key, spread.mean))
    if not math.isfinite(spread.mean):
        return Cell("nan")
    sign = "+" if column.group == "delta" else ""
    verdict = row.verdicts.get(column.key)
    std = f"{spread.std:.{column.decimals}f}" if math.isfinite(spread.std) else ""
    mean = round(spread.mean, column.decimals) + 0.0  # no -0.00
    return Cell(f"{mean:{sign}.{column.decimals}f}", std, verdict.mark if verdict else "")


def _parameter(row: Row, column: Column) -> Cell:
    if column.key == "n":
        return Cell(str(row.n) if row.n else "")
    if column.key == "setting":
        return Cell(row.label)
    return Cell(row.cells.get(column.key, ""))


def cost_text(name: str, value: float) -> str:
    """A cost for people: 1:02:03, 45.6, 812, 1.2 M."""
    if not math.isfinite(value):
        return ""
    if name == "wall":
        return duration(value)
    if name == "parameters":
        return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k" if value >= 1e3 else f"{value:.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def lead(rows: Sequence[Row], cells: Sequence[Sequence[Cell]], columns: Sequence[Column]) -> list[list[Cell]]:
    """Cells with the names of baselines and published rows in their first column."""
    named = []
    for row, line in zip(rows, cells, strict=True):
        first = line[0] if row.kind == "setting" or columns[0].key == "setting" else _name(row, line[0])
        named.append([first, *line[1:]])
    return named


def _name(row: Row, cell: Cell) -> Cell:
    return Cell(f"{row.label} ({cell.mean})" if cell.mean else row.label)


def make_cells(table: Table, columns: Sequence[Column]) -> list[list[Cell]]:
    """All cells of a table, row by row."""
    return lead(table.rows, [[make_cell(row, column) for column in columns] for row in table.rows], columns)
