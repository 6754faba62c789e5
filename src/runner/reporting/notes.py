"""The sentences around a table: what all runs share, how to read the marks, what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.reporting.delta_m import RULES
from runner.reporting.grid import Column
from runner.reporting.merges import WORDS
from runner.reporting.model import Report, Row, Table
from runner.reporting.read import Run, Sweep
from runner.reporting.settings import command_keys
from runner.reporting.significance import FEWEST, LEVEL

ALWAYS = ("trainer.max_steps", "trainer.epochs", "trainer.batch_size", "optimizer.lr")
"""Single keys that are worth saying even where nobody set them."""


def constant_line(table: Table) -> str:
    """`mixture rooms, backbone resnet, trainer.max_steps=300`: what all runs share, as far as one asks."""
    asked = set(command_keys([row.setting for row in table.rows if row.setting is not None]))
    parts = [f"{key} {value}" for key, value in table.columns.constant if "." not in key and _is_part(key, value)]
    keys = [
        f"{key}={value}"
        for key, value in table.columns.constant
        if key in ALWAYS or (key in asked and not _is_part(key, value))
    ]
    return ", ".join([*parts, *[word for word in dict.fromkeys(keys) if not word.endswith("=null")]])


_PARTS = ("mixture", "sampler", "backbone", "architecture", "adapter", "weighting", "merge", "optimizer", "scheduler")


def _is_part(key: str, value: str) -> bool:
    return key in _PARTS and value != "none"


def notes(table: Table, columns: Sequence[Column], marks: tuple[str, str, str]) -> list[str]:
    """How to read the table, and what to be careful with; one sentence each.

    Args:
        columns: those that are shown. marks: the signs for best, not distinguishable, and too few seeds.
    """
    rows = [row for row in table.rows if row.kind == "setting"]
    found = []
    if any(row.n > 1 for row in rows):
        found.append("mean ± standard deviation over n seeds")
    found += _significance(rows, [column.key for column in columns], marks)
    found += _delta(table, columns)
    found += [WORDS[column.key] for column in columns if column.key in WORDS]
    if any(row.kind == "published" for row in table.rows):
        found.append("published: numbers that the configuration quotes, not run here")
    if table.columns.implied:
        found.append(f"these differ too, together with the columns: {', '.join(table.columns.implied)}")
    if table.repeated:
        found.append(f"of runs with the same settings and seed the newest counts; {table.repeated} older not counted")
    if any(column.key == "rank" for column in columns):
        found.append("mean rank: over the headline metrics of all tasks, 1 is best")
    return found


def _significance(rows: Sequence[Row], keys: Sequence[str], marks: tuple[str, str, str]) -> list[str]:
    if len(rows) < 2:
        return []
    verdicts = [row.verdicts[key] for row in rows for key in keys if key in row.verdicts]
    tests = {verdict.test for verdict in verdicts if verdict.test}
    best, close, unclear = marks
    if not tests:
        return [f"{best} best mean; fewer than {FEWEST} seeds a setting, so differences cannot be told from noise"]
    words = " or ".join(
        {"paired": "paired t-test by seed", "welch": "Welch's t-test where seeds differ"}[test]
        for test in sorted(tests)
    )
    found = [
        f"{best} best, {close} not distinguishable from it ({words}, Holm-corrected over the rows of a column,"
        f" {100 * LEVEL:.0f} % level)"
    ]
    if max(row.n for row in rows) < 5:
        found[0] += f"; from {max(row.n for row in rows)} seeds only large differences can be told"
    few = [row.label for row in rows if row.n < FEWEST]
    if few:
        found.append(f"{unclear} fewer than {FEWEST} seeds, too few to tell: {', '.join(few[:8])}{_more(few, 8)}")
    return found


def _delta(table: Table, columns: Sequence[Column]) -> list[str]:
    shown = [column.head for column in columns if column.group == "delta"]
    if not table.definitions:
        merges = any(column.group == "merge" for column in columns)  # which are measured against their experts
        if merges or not any(row.kind == "setting" for row in table.rows) or len(table.tasks) < 2:
            return []
        return ["no Δm: no single-task baseline was found; train with baseline=auto, or give --baseline DIR|FILE"]
    found = [f"Δm against {table.baseline}, mean over their seeds"]
    bases = [row.spreads[f"Δm/{shown[0]}"] for row in table.rows if row.kind == "baseline"] if shown else []
    own = [f"{base.std:.2f} % (n = {base.n})" for base in bases if math.isfinite(base.std)]
    if own:
        found[0] += f"; their own spread by {shown[0]} is ± {', '.join(own[:4])}{_more(own, 4)}"
    for name in shown:
        rule = RULES[name]
        found.append(f"Δm {name}: {rule.words}, {rule.better} is better ({rule.source})")
    if table.undefined:
        found.append(f"Δm is not defined where a value is missing or a baseline is 0: {', '.join(table.undefined[:6])}")
    if table.loose:
        found.append(
            f"the baselines were trained under other settings than: {', '.join(table.loose[:4])}{_more(table.loose, 4)}"
        )
    return found


def objective(sweep: Sweep) -> str:
    """What a search looked for."""
    names = sweep.search.get("objective")
    return ", ".join(map(str, names)) if isinstance(names, list) and names else "the objective"


def progress(run: Run) -> str:
    """`step 40 of 300: out of memory`."""
    where = f"step {run.step}" + (f" of {run.goal}" if run.goal else "") if run.step or run.state == "running" else ""
    return ": ".join(part for part in (where, run.cause) if part)


def counts(report: Report) -> str:
    """`12 runs: 9 completed, 2 running, 1 failed`."""
    found: dict[str, int] = {}
    for run in report.found.runs:
        found[run.state] = found.get(run.state, 0) + 1
    order = ("completed", "running", "waiting", "stopped", "killed", "failed", "damaged")
    words = ", ".join(f"{found[state]} {state}" for state in order if state in found)
    return f"{len(report.found.runs)} run{'s' if len(report.found.runs) != 1 else ''}: {words}"


def _more(items: Sequence[str], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""
