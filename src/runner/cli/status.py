"""`runner status`: one run in full, or a line for every run in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.cli import runs, sweep_status
from runner.cli.arguments import split_plain
from runner.cli.output import print_table, show_value
from runner.errors import EXIT_DONE, UserError
from runner.launching import rundir

HELP = """\
usage: runner status [DIR] [--json]

Says how a run is doing: status, step, attempts, newest metrics, checkpoints, what to do next.
For a sweep one line per job, with its place in Slurm's queue; for a folder of runs (default:
outputs) one line per run.

  --json   run.json, newest step and result of each run, for scripts

examples:
  runner status
  runner status outputs/train/demo
  runner status outputs/sweeps/demo-3fa9c1d2
  runner status outputs/train/demo/20260101T120000Z-3fa9c1d2-ab12
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    given, flags = split_plain(arguments, "status", ["[DIR]"], optional=1, flags=["--json"])
    place = runs.open_sweep(given[0] if given else "outputs")
    if place is not None:
        return sweep_status.show(place, as_json="--json" in flags)
    folder = runs.existing(given[0] if given else "outputs")
    found = [folder] if runs.is_run(folder) else runs.find_runs(folder)
    if not found:
        raise UserError(f"there is no run in '{folder}'", "start one", "runner train +experiment=demo")
    if "--json" in flags:
        print(json.dumps([as_json(path) for path in found], indent=2))
    elif runs.is_run(folder):
        _print_one(folder)
    else:
        _print_many(found, folder)
    return EXIT_DONE


def as_json(path: Path) -> dict[str, Any]:
    """A run for scripts."""
    return {
        "path": str(path),
        "step": runs.last_metrics(path)[0],
        "run": runs.read_info(path),
        "result": runs.read_result(path),
    }


def _print_many(found: list[Path], folder: Path) -> None:
    rows = []
    for path in found:
        try:
            info = runs.read_info(path)
        except UserError:
            rows.append([str(path.relative_to(folder)), "damaged", "", "", ""])
            continue
        step, _ = runs.last_metrics(path)
        try:
            result = headline(path)
        except UserError:
            result = "result.json is damaged"
        rows.append([str(path.relative_to(folder)), status(info), str(step), age(info), result])
    print_table(["run", "status", "step", "started", "result"], rows)


def _print_one(path: Path) -> None:
    info, config = runs.read_info(path), runs.read_config(path)
    step, values = runs.last_metrics(path)
    goal = (config.get("trainer") or {}).get("max_steps")
    attempts = info.get("attempts") or []
    lines = [
        ("status", status(info)),
        ("command", f"runner {' '.join(map(str, info.get('argv', [])))}"),
        ("step", f"{step} of {goal}" if goal else str(step)),
        ("started", age(info)),
        ("signature", f"{info.get('signature')}, seed {info.get('seed')}"),
        ("checkpoints", _checkpoints(path)),
    ]
    if len(attempts) > 1:
        lines.append(("attempts", str(len(attempts))))
    if attempts and attempts[-1].get("message"):
        lines.append(("message", str(attempts[-1]["message"])))
    print(path)
    for name, text in lines:
        print(f"  {name:<12} {text}")
    result = runs.read_result(path)
    if result and isinstance(result.get("tasks"), dict):
        print()
        rows = [[t, m, show_value(v)] for t, metrics in result["tasks"].items() for m, v in metrics.items()]
        print_table(["task", str(result.get("split", "")) or "metric", "value"], rows)
    else:
        for split, metrics in values.items():
            if split != "train":
                print(f"\nnewest metrics, {split}:")
                print_table(["task", "metric", "value"], [[t, m, show_value(v)] for (t, m), v in metrics.items()])
    if info.get("status") != "COMPLETED" and not alive(info):
        print(f"\n  see: runner resume {path}")


def status(info: dict[str, Any]) -> str:
    """The status, and a word where it cannot be true any more."""
    status = str(info.get("status"))
    if status != "RUNNING":
        return status
    return "RUNNING" if alive(info) else "KILLED  (its process is gone)"


def alive(info: dict[str, Any]) -> bool:
    """Whether the newest attempt's process still lives; one on another host is believed."""
    attempts = info.get("attempts") or []
    if info.get("status") != "RUNNING" or not attempts:
        return False
    return rundir.alive(attempts[-1])


def _checkpoints(path: Path) -> str:
    folder, done = path / "checkpoints", runs.checkpoints(path)
    if not done:
        return "none yet"
    links = {name: (folder / name).resolve().name for name in ("latest", "best") if (folder / name).exists()}
    marked = [f"{c} ({', '.join(n for n, t in links.items() if t == c)})" if c in links.values() else c for c in done]
    return ", ".join(marked)


def age(info: dict[str, Any]) -> str:
    """How long ago the run was created."""
    created = info.get("created") or next((a.get("started") for a in info.get("attempts") or []), None)
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(str(created))).total_seconds()
    except ValueError:
        return "unknown"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def headline(path: Path) -> str:
    """Each task's headline metric: enough to tell runs apart."""
    result = runs.read_result(path) or {}
    headlines = result.get("headline") or {}
    words = []
    for task, metrics in (result.get("tasks") or {}).items():
        name = headlines.get(task, next(iter(metrics), ""))
        if name in metrics:
            words.append(f"{task} {name} {show_value(metrics[name])}")
    return ", ".join(words)
