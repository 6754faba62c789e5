"""What the page's scripts are given: tables, runs, curves and configurations as one JSON value."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from runner.reporting.delta_m import RULES
from runner.reporting.grid import HIGHER
from runner.reporting.merges import COLUMNS
from runner.reporting.model import Report, Row, Table
from runner.reporting.notes import objective, progress
from runner.reporting.page import curves, pictures
from runner.reporting.read import Run
from runner.reporting.settings import shown


def make(report: Report, panels_mb: float) -> dict[str, Any]:
    """The page's data; no number in it is longer than it needs to be."""
    runs: list[dict[str, Any]] = []
    budget = panels_mb * 1e6
    tables = []
    for table in report.tables:
        content, budget = _table(table, report, runs, budget)
        tables.append(content)
    searches = [
        [sweep.path.name, objective(sweep), list(s.items())] for sweep in report.found.sweeps if (s := sweep.importance)
    ]
    return {
        "searches": searches,
        "tables": tables,
        "runs": runs,
        "broken": [_run(run, "") for run in (*report.waiting, *report.broken)],
    }


def _table(table: Table, report: Report, runs: list[dict[str, Any]], budget: float) -> tuple[dict[str, Any], float]:
    numbers: dict[int, Run] = {}
    rows = []
    settings = []
    for row in table.rows:
        own: list[tuple[int, Run]] = []
        for run in row.runs:
            own.append((len(runs), run))
            runs.append(_run(run, row.label))
        numbers |= dict(own)
        if row.kind == "setting":
            settings.append((row.label, own))
        rows.append(_row(row, [number for number, _ in own], table))
    places = {id(run): number for number, run in numbers.items()}
    for run in table.unfinished:
        if id(run) not in places:
            places[id(run)] = len(runs)
            numbers[len(runs)] = run
            runs.append(_run(run, ""))
    rest = [places[id(run)] for run in table.unfinished]
    panels, left_out = pictures.collect(settings, budget)
    budget -= sum(len(str(panel)) for panel in panels)
    return {
        "title": table.title,
        "tasks": table.tasks,
        "split": table.split,
        "metrics": [[metric.task, metric.name, metric.better, int(metric.headline)] for metric in table.metrics],
        "params": table.columns.names,
        "definitions": [
            [name, HIGHER[RULES[name].better], RULES[name].words, RULES[name].source] for name in table.definitions
        ],
        "merges": [[key, head, better] for key, (head, better, _) in COLUMNS.items()],
        "chosen": report.delta_m,
        "rows": rows,
        "rest": rest,
        "constant": table.columns.constant,
        "curves": curves.collect(numbers, table.tasks),
        "panels": panels,
        "panels_left_out": left_out,
    }, budget


def _row(row: Row, runs: list[int], table: Table) -> dict[str, Any]:
    points = {}
    for key, spread in row.spreads.items():
        half = spread.interval()
        points[key] = [curves.short(spread.mean), curves.short(spread.std), spread.n, curves.short(half)]
    seeds = {key: [curves.short(x) for x in samples.values()] for key, samples in row.samples.items() if "Δm/" in key}
    content: dict[str, Any] = {
        "kind": row.kind, "label": row.label, "cells": [row.cells.get(name, "") for name in table.columns.names],
        "n": row.n, "runs": runs, "v": points, "seeds": seeds,
        "rank": curves.short(row.rank) if math.isfinite(row.rank) else None,
    }  # fmt: skip
    if row.setting is not None:
        constant = dict(table.columns.constant)
        own = {key.removesuffix("._target_"): shown(row.setting, key) for key in row.setting.flat}
        content["config"] = {key: value for key, value in own.items() if constant.get(key) != value}
    return content


def _run(run: Run, label: str) -> dict[str, Any]:
    git = run.info.get("git")
    content: dict[str, Any] = {
        "path": _place(run.path),
        "state": run.state,
        "label": label,
        "seed": run.seed,
        "command": f"runner {shlex.join(run.argv)}" if run.argv else "",
        "signature": run.signature,
    }
    if run.state != "completed":
        content["cause"] = progress(run)
    if isinstance(git, dict) and git.get("sha"):
        content["git"] = str(git["sha"])[:10] + (" and uncommitted changes (git.diff)" if git.get("dirty") else "")
    return content


def _place(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)
