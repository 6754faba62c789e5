"""The page's table, written out in HTML: it is there before any script runs, and without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from runner.reporting.delta_m import RULES
from runner.reporting.grid import Cell, Column, make_cells, make_columns
from runner.reporting.model import Row, Table

MARKS = {"best": "bold:", "close": "≈", "unclear": "?"}
ARROWS = {"up": "↑", "down": "↓"}


def page_columns(table: Table, chosen: str) -> list[Column]:
    """Every metric and every definition; all but the headlines and the chosen one are hidden until asked for."""
    return make_columns(table, table.metrics, [chosen, *(name for name in RULES if name != chosen)])


def table_html(table: Table, columns: Sequence[Column], chosen: str) -> str:
    """The table with two lines of heading; `data-v` holds what a column is sorted by.

    Args:
        chosen: the Δm definition that is shown at first.
    """
    heads = {metric.key for metric in table.headlines} | {f"Δm/{chosen}"}
    extra = {column.key for column in columns if column.group in ("metrics", "delta") and column.key not in heads}
    over = "".join(_over(columns, extra))
    names = "".join(
        f'<th scope=col class="{_class(column, extra)}" data-key="{escape(column.key)}"><button>'
        f"{escape(column.head)}{_arrow(column)}</button></th>"
        for column in columns
    )
    body = []
    for i, (row, cells) in enumerate(zip(table.rows, make_cells(table, columns), strict=True)):
        line = "".join(_cell(row, column, cell, extra) for column, cell in zip(columns, cells, strict=True))
        body.append(f'<tr class="{row.kind}" data-row={i}>{line}</tr>')
    return (
        f'<div class=scroll tabindex=0><table class="results few one"><thead><tr class=over>{over}</tr>'
        f"<tr class=names>{names}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _over(columns: Sequence[Column], extra: set[str]) -> list[str]:
    """The upper heading: a task over its metrics; its hidden columns do not count until they are shown."""
    found, at = [], 0
    while at < len(columns):
        span = 1
        while columns[at].over and at + span < len(columns) and columns[at + span].over == columns[at].over:
            span += 1
        shown = sum(column.key not in extra for column in columns[at : at + span])
        found.append(f"<th colspan={max(1, shown)} data-from={at} data-all={span}>{escape(columns[at].over)}</th>")
        at += span
    return found


def _class(column: Column, extra: set[str]) -> str:
    left = column.group == "parameters" and column.key != "n"
    hidden = [{"metrics": "extra", "delta": "more"}[column.group]] if column.key in extra else []
    return " ".join(["left" if left else "right", column.group, *hidden])


def _arrow(column: Column) -> str:
    words = {"up": "higher is better", "down": "lower is better"}
    if column.better not in ARROWS:
        return ""
    return f' <span class=arrow title="{words[column.better]}">{ARROWS[column.better]}</span>'


def _cell(row: Row, column: Column, cell: Cell, extra: set[str]) -> str:
    spread = row.spreads.get(column.key)
    value = row.rank if column.group == "rank" else spread.mean if spread else math.nan
    if column.key == "n":
        value = float(row.n)
    data = f" data-v={value:.6g}" if math.isfinite(value) else ""
    verdict = row.verdicts.get(column.key)
    if verdict is not None and math.isfinite(verdict.p):
        name = {"paired": "paired t-test", "welch": "Welch's t-test"}[verdict.test]
        data += f' title="against the best: p = {verdict.p:.2g} ({name}, Holm-corrected)"'
    mark = f" {cell.mark}" if cell.mark in MARKS else ""
    text = escape(cell.mean)
    if cell.std:
        text += f"<i> ± {cell.std}</i>"
    if cell.mark in ("close", "unclear"):
        text += f"<sup>{MARKS[cell.mark]}</sup>"
    return f'<td class="{_class(column, extra)}{mark}"{data}>{text}</td>'
