"""Tables and colours: rich on a terminal, plain aligned text everywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import IO


def on_terminal(stream: IO[str] | None = None) -> bool:
    """Whether a person is looking."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str, stream: IO[str] | None = None) -> str:
    """Text in an ANSI style ("1" bold, "2" dim, "31" red, …) on a terminal without NO_COLOR, else as it is."""
    if not on_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


def print_notes(notes: Sequence[str]) -> None:
    """Lines that a user should know of though nothing is wrong, on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


COLUMN = 24
"""Characters that a column of sentences needs at least to be read as one."""
SHORT = 14
"""Characters of a cell that stands beside others also where there is no room for columns."""


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows: as wide as a terminal; elsewhere one line per row, never cut, columns two spaces apart.

    On a terminal sentences are wrapped between words. Names and paths never are, so that they can be copied: where they
    leave too little room for columns, every row becomes a few lines.
    """
    if on_terminal():
        width = shutil.get_terminal_size().columns
        least = [_least([header, *(row[i] for row in rows)], i == 0) for i, header in enumerate(headers)]
        if rows and sum(least) + 2 * (len(least) - 1) > width:
            _print_stacked(headers, rows, title, width)
        else:
            _print_columns(headers, rows, title, least, width)
        return
    if title:
        print(title)
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _least(cells: Sequence[str], name: bool) -> int:
    """The width that a column must have: names (the first column) and single words as they are, sentences wrapped."""
    longest = max(map(len, cells))
    if name:
        return longest
    return max(min(longest, COLUMN), max(len(word) for cell in cells for word in cell.split() or [""]))


def _print_columns(
    headers: Sequence[str], rows: Sequence[Sequence[str]], title: str, least: Sequence[int], room: int
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = [max(len(line[i]) for line in (headers, *rows)) for i in range(len(headers))]
    while sum(widths) + 2 * (len(widths) - 1) > room and widths != list(least):
        widest = max((i for i, width in enumerate(widths) if width > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header, width in zip(headers, widths, strict=True):
        table.add_column(header, overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _print_stacked(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int) -> None:
    """A row's name on a line of its own, its short cells beside one another, and every longer one below."""
    if title:
        print(title)
    brief = [max(len(row[i]) for row in rows) <= SHORT for i in range(len(headers))]
    for row in rows:
        print(paint(row[0], "1"))
        cells = [(header, cell) for header, cell in zip(headers, row, strict=True)][1:]
        short = [f"{h} {c}".strip() for (h, c), is_brief in zip(cells, brief[1:], strict=True) if is_brief and c]
        long = [f"{h}: {c}" for (h, c), is_brief in zip(cells, brief[1:], strict=True) if not is_brief and c]
        for text in [*(["   ".join(short)] if short else []), *long]:
            for line in _wrapped(text, width):
                print(line)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines between whose words it breaks, indented; a word that is too long stays whole for the terminal to wrap."""
    return textwrap.wrap(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def show_value(value: object) -> str:
    """A configuration value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
