"""The tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

from runner.reporting.delta_m import RULES
from runner.reporting.grid import Cell, Column, make_cells, make_columns
from runner.reporting.merges import COLUMNS as MERGES
from runner.reporting.model import Metric, Report, Row, Table
from runner.reporting.notes import constant_line, counts, notes, progress
from runner.reporting.text import SIGNS

Chosen = Callable[[Table], Sequence[Metric]]


def markdown(report: Report, metrics: Chosen, definitions: Sequence[str]) -> str:
    """One Markdown table for each table, the best in bold, ≈ behind what cannot be told from it."""
    parts = []
    for table in report.tables:
        columns = make_columns(table, metrics(table), definitions)
        heads = [_md(f"{c.over} {c.head}".strip() + SIGNS.get(c.better, "")) for c in columns]
        lines = [f"### {_md(table.title)}", ""]
        constant = constant_line(table)
        lines += [f"All runs: {_md(constant)}", ""] if constant else []
        lines += [f"| {' | '.join(heads)} |"]
        lines += [f"|{'|'.join('---' if _is_text(c) else '---:' for c in columns)}|"]
        for row in make_cells(table, columns):
            lines.append(f"| {' | '.join(map(_md_cell, row))} |")
        lines += ["", *(f"- {_md(note)}" for note in notes(table, columns, ("**bold**:", "≈", "?")))]
        lines += [f"- {run.state}: `{run.path.name}` {_md(progress(run))}" for run in table.unfinished]
        parts.append("\n".join(lines))
    if report.waiting:
        parts.append(f"{len(report.waiting)} jobs have not begun.")
    broken = [f"- `{run.path}`: {_md(run.cause)}" for run in report.broken]
    if broken:
        parts.append("\n".join(["Cannot be read:", "", *broken]))
    return "\n\n".join([f"{counts(report)}", *parts]) + "\n"


def _is_text(column: Column) -> bool:
    return column.group == "parameters" and column.key != "n"


def _md(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _md_cell(cell: Cell) -> str:
    text = f"{cell.mean} ± {cell.std}" if cell.std else _md(cell.mean)
    return f"**{text}**" if cell.mark == "best" else f"{text} ≈" if cell.mark == "close" else text


def latex(report: Report, metrics: Chosen, definitions: Sequence[str]) -> str:
    r"""One `tabular` with booktabs rules for each table, tasks over their metrics, ready for `\input`."""
    return "\n".join(_latex_table(table, make_columns(table, metrics(table), definitions)) for table in report.tables)


def _latex_table(table: Table, columns: Sequence[Column]) -> str:
    lines = [f"% {line}" for line in (table.title, constant_line(table)) if line]
    for note in notes(table, columns, ("bold:", "dagger:", "?")):
        lines.append(f"% {note}")
    lines.append("% needs \\usepackage{booktabs}")
    lines.append(f"\\begin{{tabular}}{{{''.join('l' if _is_text(column) else 'r' for column in columns)}}}")
    lines.append("\\toprule")
    over, rules, at = [], [], 0
    while at < len(columns):
        span = 1
        while columns[at].over and at + span < len(columns) and columns[at + span].over == columns[at].over:
            span += 1
        name = _tex(columns[at].over)
        over.append(f"\\multicolumn{{{span}}}{{c}}{{{name}}}" if name else "")
        if name:
            rules.append(f"\\cmidrule(lr){{{at + 1}-{at + span}}}")
        at += span
    if rules:
        lines += [" & ".join(over) + r" \\", " ".join(rules)]
    arrows = {"up": r"\,$\uparrow$", "down": r"\,$\downarrow$"}
    lines.append(" & ".join(_tex(column.head) + arrows.get(column.better, "") for column in columns) + r" \\")
    lines.append("\\midrule")
    for n, row in enumerate(make_cells(table, columns)):
        lines.append(" & ".join(map(_tex_cell, row)) + r" \\")
        if table.rows[n].kind != "setting" and n + 1 < len(table.rows) and table.rows[n + 1].kind == "setting":
            lines.append("\\midrule")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _tex_cell(cell: Cell) -> str:
    if not cell.std and not re.fullmatch(r"[-+]?\d+(\.\d+)?", cell.mean):
        return _tex(cell.mean)
    number = cell.mean.replace("+", "{+}").replace("-", "{-}")
    mean = f"\\mathbf{{{number}}}" if cell.mark == "best" else number
    spread = f" {{\\scriptstyle\\,\\pm\\,{cell.std}}}" if cell.std else ""
    dagger = r"^{\dagger}" if cell.mark == "close" else ""
    return f"${mean}{spread}{dagger}$"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''",
    "±": r"$\pm$", "≈": r"$\approx$", "·": r"$\cdot$", "×": r"$\times$", "–": "--", "…": r"\dots{}", "−": "$-$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "≤": r"$\leq$",
    "≥": r"$\geq$", "≠": r"$\neq$", "∞": r"$\infty$", "∇": r"$\nabla$", "²": "$^2$", "³": "$^3$", "µ": r"$\mu$",
    "°": r"$^\circ$",
}  # fmt: skip
_ROMAN = {"OMICRON": "O", "ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I"}
_ROMAN |= {"KAPPA": "K", "MU": "M", "NU": "N", "RHO": "P", "TAU": "T", "CHI": "X"}
"""Greek capitals that TeX has no command for."""


def _tex(text: str) -> str:
    r"""Text for LaTeX's own fonts; a letter that they do not have is named, so that the page compiles all the same."""
    shown = "".join(map(_tex_letter, text))
    # Behind the \\ of the row before, these would be taken for its argument.
    return f"{{}}{shown}" if shown.startswith(("[", "*")) else shown


def _tex_letter(letter: str) -> str:
    if letter in _TEX or letter < "\x7f":
        return _TEX.get(letter, letter)
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK"):
        word = name.rpartition(" ")[2].replace("LAMDA", "LAMBDA")
        if name == f"GREEK SMALL LETTER {name.rpartition(' ')[2]}":
            return "o" if word == "OMICRON" else f"$\\{word.lower()}$"
        if name == f"GREEK CAPITAL LETTER {name.rpartition(' ')[2]}":
            return _ROMAN.get(word, f"$\\{word.capitalize()}$")
    return letter if name.startswith("LATIN") and letter < "\u0180" else f"[U+{ord(letter):04X}]"


def comma_separated(report: Report, metrics: Chosen) -> str:
    """One CSV line for each row of each table, numbers in full, every Δm definition; columns of all tables together."""
    lines: list[dict[str, str | int | float]] = []
    for table in report.tables:
        for row in table.rows:
            line: dict[str, str | int | float] = {"table": table.title, "kind": row.kind, "setting": row.label}
            line |= {name: row.cells.get(name, "") for name in table.columns.names}
            seeds = [] if row.setting is None else list(row.setting.runs)
            line |= {"n": row.n, "seeds": " ".join(map(str, seeds))}
            for metric in metrics(table):
                _csv_cells(line, row, metric.key)
            for key in MERGES:
                _csv_cells(line, row, key)
            for name in RULES:
                _csv_cells(line, row, f"Δm/{name}")
            line["mean_rank"] = row.rank if math.isfinite(row.rank) else ""
            for key, name in COST_NAMES.items():
                if key in row.spreads:
                    line[name] = row.spreads[key].mean
            lines.append(line)
    names = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


COST_NAMES = {"wall": "wall_s", "step": "step_ms", "memory": "peak_memory_mb", "parameters": "parameters"}


def _csv_cells(line: dict[str, str | int | float], row: Row, key: str) -> None:
    spread, name = row.spreads.get(key), key.replace("Δm/", "delta_m/")
    if spread is None:
        return
    line[name] = spread.mean if math.isfinite(spread.mean) else "nan"
    line[f"{name} std"] = spread.std if math.isfinite(spread.std) else ""
    verdict = row.verdicts.get(key)
    line[f"{name} verdict"] = verdict.mark if verdict else ""
    line[f"{name} p"] = verdict.p if verdict and math.isfinite(verdict.p) else ""
