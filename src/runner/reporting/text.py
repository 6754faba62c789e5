"""The report for a terminal: tables cut into blocks that fit its width, then what needs attention."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby

from runner.reporting.grid import Cell, Column, make_cells, make_columns
from runner.reporting.model import Metric, Report, Row, Table
from runner.reporting.notes import constant_line, counts, notes, objective, progress
from runner.reporting.read import Run

MARKS = {"best": "*", "close": "≈", "unclear": "?"}
SIGNS = {"up": " ↑", "down": " ↓"}
_PLAIN = str.maketrans({"↑": "^", "↓": "v", "±": "+-", "≈": "~", "Δ": "d", "·": "-", "–": "-", "…": "..."})
LISTED = 12
"""So many runs of one state are listed; the page has them all."""

Paint = Callable[[str, str], str]


def render(
    report: Report,
    *,
    metrics: Callable[[Table], Sequence[Metric]],
    definitions: Sequence[str],
    width: int | None,
    paint: Paint,
    ascii_only: bool = False,
) -> str:
    """The whole report as text.

    Args:
        metrics: gives the metrics to show of a table. definitions: the Δm definitions to show.
        width: of the terminal in characters; None does not cut tables into blocks.
        paint: text and an ANSI style → styled text. ascii_only: for a terminal that cannot show arrows.
    """
    lines = [counts(report)]
    for sweep in report.found.sweeps:
        lines.append(f"{sweep.kind} {sweep.info.get('name') or sweep.path.name} in {sweep.path}")
        if sweep.importance:
            shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in sweep.importance.items())
            lines.append(f"importance for {objective(sweep)}: {shares}")
    if len(report.tables) > 1:
        lines.append(f"{len(report.tables)} tables: runs of other tasks, data or splits cannot be compared")
    for table in report.tables:
        lines += ["", paint(table.title, "1"), *_table(table, metrics(table), definitions, width, paint)]
        lines += _unfinished(table, paint)
    if report.waiting:
        lines += [
            "",
            paint(f"waiting ({len(report.waiting)})", "1"),
            *_listed(report.waiting, lambda run: " ".join(run.argv)),
        ]
    again = [sweep for sweep in report.found.sweeps if sweep.command]
    if again and any(run.state not in ("completed", "running") for run in report.found.runs):
        lines += ["", "the same command runs what is not completed:", *(f"  {sweep.command}" for sweep in again)]
    if report.broken:
        lines += ["", paint("cannot be read", "1"), *_listed(report.broken, lambda run: f"{run.path}: {run.cause}")]
    text = "\n".join(lines) + "\n"
    return text.translate(_PLAIN) if ascii_only else text


def _table(
    table: Table, metrics: Sequence[Metric], definitions: Sequence[str], width: int | None, paint: Paint
) -> list[str]:
    lines = []
    constant = constant_line(table)
    if constant:
        lines += [paint(line, "2") for line in _fold(f"all runs: {constant}", width, "", "  ")]
    if not table.rows:
        return [*lines, "no run is completed yet"]
    columns = make_columns(table, metrics, definitions)
    cells = make_cells(table, columns)
    lines.append("")
    for block in _blocks(columns, cells, width):
        lines += [
            *_draw(table.rows, [columns[i] for i in block], [[row[i] for i in block] for row in cells], paint),
            "",
        ]
    marks = (MARKS["best"], MARKS["close"], MARKS["unclear"])
    folded = (line for note in notes(table, columns, marks) for line in _fold(note, width, "  ", "    "))
    return [*lines, *(paint(line, "2") for line in folded)]


def _fold(text: str, width: int | None, first: str, rest: str) -> list[str]:
    """A sentence in lines that fit."""
    if width is None:
        return [f"{first}{text}"]
    return textwrap.wrap(
        text, max(20, width), initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _blocks(columns: Sequence[Column], cells: Sequence[Sequence[Cell]], width: int | None) -> list[list[int]]:
    """Columns that are printed side by side; each block begins with the parameters."""
    widths = [max(map(len, _texts(column, [row[i] for row in cells]))) + 2 for i, column in enumerate(columns)]
    first = [i for i, column in enumerate(columns) if column.group == "parameters"]
    rest = [i for i in range(len(columns)) if i not in first]
    if width is None or not rest:
        return [[*first, *rest]]
    blocks: list[list[int]] = []
    room = 0
    for i in rest:
        if widths[i] > room:
            blocks.append(list(first))
            room = max(width - sum(widths[j] for j in first), widths[i])
        blocks[-1].append(i)
        room -= widths[i]
    return blocks


def _text(cell: Cell) -> str:
    text = f"{cell.mean} ± {cell.std}" if cell.std else cell.mean
    return text


def _texts(column: Column, cells: Sequence[Cell]) -> list[str]:
    """Heading lines and cells of one column, aligned; a mark takes two places where the column has any."""
    marked = any(cell.mark in MARKS for cell in cells)
    spread = any(cell.std for cell in cells)
    widest = max((len(cell.std) for cell in cells), default=0)
    texts = []
    for cell in cells:
        text = _text(cell)
        if spread and cell.mean:  # the ± of all rows stand in one line
            text = f"{cell.mean} ± {cell.std:>{widest}}" if cell.std else f"{cell.mean}{' ' * (widest + 3)}"
        texts.append(f"{text} {MARKS.get(cell.mark, ' ')}" if marked else text)
    head = column.head + SIGNS.get(column.better, "")
    return [column.over, head, *texts]


def _draw(rows: Sequence[Row], columns: Sequence[Column], cells: Sequence[Sequence[Cell]], paint: Paint) -> list[str]:
    drawn: list[list[str]] = []
    for i, column in enumerate(columns):
        texts = _texts(column, [row[i] for row in cells])
        width = max(map(len, texts))
        left = column.group == "parameters" and column.key != "n"
        drawn.append([text.ljust(width) if left else text.rjust(width) for text in texts])
    lines = ["  ".join(parts).rstrip() for parts in zip(*drawn, strict=True)]
    heads = [paint(line, "1") for line in lines[:2] if line.strip()]
    rule = "-" * max(map(len, lines))
    body = []
    for n, line in enumerate(lines[2:]):
        styles = [
            paint(text, "1") if row_cell.mark == "best" else text
            for text, row_cell in zip([part[n + 2] for part in drawn], cells[n], strict=True)
        ]
        body.append("  ".join(styles).rstrip() if "\033" in "".join(styles) else line)
        last_special = rows[n].kind != "setting" and n + 1 < len(rows) and rows[n + 1].kind == "setting"
        if last_special:
            body.append(rule)
    return [*heads, rule, *body]


def _unfinished(table: Table, paint: Paint) -> list[str]:
    lines: list[str] = []
    order = ("running", "waiting", "stopped", "killed", "failed", "damaged")
    runs = sorted(table.unfinished, key=lambda run: order.index(run.state))
    for state, group in groupby(runs, key=lambda run: run.state):
        listed = list(group)
        lines += ["", paint(f"{state} ({len(listed)})", "1;31" if state in ("failed", "killed", "damaged") else "1")]
        lines += _listed(listed, lambda run: f"{run.path.name}  {_own_words(run, runs)}{progress(run)}".rstrip())
    return lines


def _own_words(run: Run, among: Sequence[Run]) -> str:
    """The part of a run's command that not all of the others have."""
    shared = set.intersection(*(set(other.argv) for other in among))
    own = [word for word in run.argv if word not in shared]
    return f"{' '.join(own)}  " if own else ""


def _listed(runs: Sequence[Run], words: Callable[[Run], str]) -> list[str]:
    lines = [f"  {words(run)}" for run in runs[:LISTED]]
    return [*lines, f"  … and {len(runs) - LISTED} more"] if len(runs) > LISTED else lines
