"""One HTML file that shows a report: no network, no other file; opens from disk, in light and dark, and prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from runner import __version__
from runner.reporting.model import Report
from runner.reporting.notes import constant_line, counts, notes
from runner.reporting.page import data
from runner.reporting.page.table import MARKS, page_columns, table_html

HERE = Path(__file__).parent
SCRIPTS = (
    "base.js",
    "table.js",
    "curves.js",
    "bars.js",
    "parallel.js",
    "front.js",
    "weights.js",
    "runs.js",
    "start.js",
)


def render(report: Report, *, panels_mb: float = 4.0) -> str:
    """The page.

    Args:
        panels_mb: room for prediction panels in MB, 0 for none.
    """
    title = _title(report)
    content = json.dumps(data.make(report, panels_mb), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (HERE / "style.css").read_text(encoding="utf-8")
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
        " script-src 'unsafe-inline'; img-src data:\">",
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1><p>{escape(counts(report))} · {stamp} · runner {__version__}</p>",
        *(
            f"<p class=command><code>{escape(command)}</code></p>"
            for command in (sweep.command for sweep in report.found.sweeps)
            if command
        ),
        f"<p>{len(report.tables)} tables: runs of other tasks, data or splits cannot be compared</p>"
        if len(report.tables) > 1
        else "",
        "</header><main><section id=searches></section>",
        *(_section(report, i) for i in range(len(report.tables))),
        "<section id=trouble></section>",
        "</main>",
        f'<script type="application/json" id="data">{_inert(content)}</script>',
        f"<script>{script}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _inert(text: str) -> str:
    """JSON that cannot end its script element."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(report: Report) -> str:
    if len(report.found.sweeps) == 1:
        sweep = report.found.sweeps[0]
        return f"{sweep.info.get('name') or sweep.path.name}: {sweep.kind}"
    names = dict.fromkeys(str(run.info.get("name")) for run in report.found.runs if run.info.get("name"))
    return f"{', '.join(list(names)[:3])}{' …' if len(names) > 3 else ''}: report" if names else "report"


def _section(report: Report, number: int) -> str:
    """One table with its plots; the plots' places are filled by the scripts."""
    table = report.tables[number]
    constant = constant_line(table)
    lines = [
        f"<section class=group data-table={number}><h2>{escape(table.title)}</h2>",
        f"<p class=constant><b>All runs:</b> {escape(constant)}</p>" if constant else "",
    ]
    if table.rows:
        columns, heads = page_columns(table, report.delta_m), {metric.key for metric in table.headlines}
        shown = [column for column in columns if column.group != "metrics" or column.key in heads]
        reading = notes(table, shown, (MARKS["best"], MARKS["close"], MARKS["unclear"]))
        lines += [
            '<div class=bar data-part="controls"></div>',
            table_html(table, columns, report.delta_m),
            f"<ul class=notes>{''.join(f'<li>{escape(note)}</li>' for note in reading)}</ul>",
        ]
    else:
        lines.append("<p>No run is completed yet.</p>")
    lines += [f'<div class=part data-part="{part}"></div>' for part in PARTS]
    return "\n".join([*lines, "</section>"])


PARTS = ("delta", "curves", "parallel", "front", "weights", "conflict", "panels", "runs")
