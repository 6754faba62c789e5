"""Finding run directories and reading what they say, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UserError

if TYPE_CHECKING:
    from runner.launching.sweepdir import SweepDirectory


def is_run(path: Path) -> bool:
    """Whether a folder is the directory of a run."""
    return (path / "run.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """The run directories below a folder, oldest first (their names begin with the time)."""
    found: list[Path] = []
    for base, folders, files in os.walk(folder):
        if "run.json" in files:
            found.append(Path(base))
            folders.clear()  # a run's own folders hold no runs
        folders[:] = [f for f in folders if not f.startswith(".")]
    return sorted(found, key=lambda path: path.name)


def existing(path: str) -> Path:
    """A folder that must exist.

    Raises:
        UserError: it does not; near misses are suggested.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        starts = [n for n in beside if n.startswith(folder.name)]
        hint = f"did you mean '{folder.parent / starts[0]}'?" if starts else "give the directory of a run"
        raise UserError(f"there is no folder '{path}'", hint, "runner status outputs")
    return folder


def open_run(path: str, verb: str) -> Path:
    """The one run that a folder means: itself, or the only run in it that fits the verb.

    Raises:
        UserError: no run there, or several.
    """
    folder = existing(path)
    if is_run(folder):
        return folder
    runs = [r for r in find_runs(folder) if verb != "resume" or read_info(r).get("status") != "COMPLETED"]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        unfinished = "unfinished " if verb == "resume" else ""
        raise UserError(f"there is no {unfinished}run in '{path}'", "", f"runner status {path}")
    newest = runs[-1]
    raise UserError(
        f"there are {len(runs)} runs in '{path}'", f"say which; the newest is {newest}", f"runner status {path}"
    )


def open_sweep(path: str) -> SweepDirectory | None:
    """The sweep whose directory `path` is; None for any other folder.

    Raises:
        UserError: there is no such folder, or its sweep.json is damaged.
    """
    folder = existing(path)
    from runner.launching.sweepdir import SweepDirectory, is_sweep

    return SweepDirectory.open(folder) if is_sweep(folder) else None


def read_info(run: Path) -> dict[str, Any]:
    """`run.json` of a run.

    Raises:
        UserError: it is damaged.
    """
    try:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError("not a mapping")
        return info
    except (OSError, ValueError) as error:
        raise UserError(f"'{run / 'run.json'}' cannot be read: {error}", "the run's own files are damaged") from error


def checkpoints(run: Path) -> list[str]:
    """Names of a run's finished checkpoints, oldest first."""
    return sorted(done.parent.name for done in (run / "checkpoints").glob("step-*/DONE"))


def read_result(run: Path) -> dict[str, Any] | None:
    """`result.json` of a run; None where there is none yet."""
    path = run / "result.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    return result if isinstance(result, dict) else None


def read_config(run: Path) -> dict[str, Any]:
    """The frozen configuration of a run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    import yaml

    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"'{run / 'config.yaml'}' cannot be read: {what}", "the run's own files are damaged") from error


def metric_rows(run: Path) -> Iterator[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that is still being written is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill; the next attempt truncates it
            if isinstance(row, dict):
                yield row


def last_metrics(run: Path) -> tuple[int, dict[str, dict[tuple[str, str], float]]]:
    """The newest step, and per split the newest value of each (task, metric)."""
    step, values = 0, {}  # type: int, dict[str, dict[tuple[str, str], float]]
    for row in metric_rows(run):
        step = max(step, int(row.get("step", 0)))
        key = (str(row.get("task") or ""), str(row.get("metric")))
        values.setdefault(str(row.get("split")), {})[key] = row.get("value", float("nan"))
    return step, values
