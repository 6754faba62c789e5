"""Tables and colours: rich on a terminal, plain aligned text everywhere else."""

from __future__ import annotations

import os
import sys
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


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows: wrapped columns on a terminal; elsewhere one line per row, never cut, columns two spaces apart."""
    if on_terminal():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
        return
    if title:
        print(title)
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_value(value: object) -> str:
    """A configuration value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
