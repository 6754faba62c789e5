"""Numbers that Δm is measured against: read from a mapping, a file, a run or a folder of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from runner.errors import UserError
from runner.reporting.read import Run, read_run
from runner.reporting.settings import BASELINE_FREE, deciding, digest, without

Numbers = dict[str, dict[str, float]]
"""Task → metric → value."""


def read_baseline(given: str | Mapping[str, Any], tasks: Sequence[str], split: str) -> Numbers:
    """The baseline that `baseline=` names, for the tasks of a run.

    Args:
        given: task → metric → value; or a path, see `read_sources`. Where several runs have a task (seeds), the mean
            over them is taken.
        tasks: the run's tasks; others are left out.
        split: "test" or "validation", which of a run's numbers count.

    Raises:
        UserError: what cannot be found or read, or a task without numbers.
    """
    if isinstance(given, Mapping):
        numbers, where = _numbers([given], "baseline"), "baseline"
    else:
        path = Path(given)
        numbers, where = _numbers([s.numbers for s in read_sources(path, split)], str(path)), str(path)
    missing = [task for task in tasks if task not in numbers]
    if missing:
        raise UserError(
            f"{where} has no baseline for {', '.join(missing)}",
            f"it has {', '.join(numbers) or 'no task at all'}",
        )
    return {task: numbers[task] for task in tasks}


@dataclass(frozen=True)
class Source:
    """Numbers of one file, or of one run.

    Attributes:
        numbers: task → metric → value. run: that they are from, where they are from one.
    """

    numbers: Numbers
    run: Run | None = None


def read_sources(path: Path, split: str | None, say: str = "baseline") -> list[Source]:
    """Every set of numbers at a path: a file of them, a result.json, a run, or a folder of runs (seeds, tasks).

    Of a folder's runs those of the fewest tasks count: single-task runs where there are any.

    Args:
        path: of a file or a folder. split: which of a run's numbers; None takes each run's own.
        say: what names the path, for messages.

    Raises:
        UserError: what cannot be found or read; a folder with runs of several settings.
    """
    if path.is_file():
        value = _load(path, say)
        whole = "tasks" in value and "split" in value
        return [Source(_numbers([_of_result(value, split, path, say) if whole else value], str(path)))]
    if not path.is_dir():
        what = f"{say}: there is no file or folder {path}"
        raise UserError(what, "a run's folder, or a file of numbers: {task: {metric: value}}")
    files = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.rglob("result.json"))
    if not files:
        raise UserError(f"{say}: there is no result.json in or below {path}", "name a COMPLETED run", "")
    found = []
    for file in files:
        run = read_run(file.parent) if (file.parent / "run.json").is_file() else None
        if run is None or run.state == "completed":
            numbers = _numbers([_of_result(_load(file, say), split, file, say)], str(file))
            found.append(Source(numbers, run))
    if not found:
        raise UserError(f"{say}: no run in '{path}' is completed", "", f"runner status {path}")
    fewest = min(len(source.numbers) for source in found)
    found = [source for source in found if len(source.numbers) == fewest]
    settings = {
        base_key(s.run.config) if fewest == 1 else digest(deciding(s.run.config)) for s in found if s.run is not None
    }
    if len(settings) > 1:
        what = f"{say}: '{path}' holds runs of {len(settings)} settings"
        raise UserError(what, "give a folder with runs of one setting")
    return found


def base_key(config: Mapping[str, Any]) -> str:
    """Settings that share this, and `agree` in the rest, share their baseline.

    A run of fewer tasks holds the configuration of fewer tasks, and selects by one that it has.
    """
    kept = without(deciding(config), BASELINE_FREE)
    for section, key in (("mixture", "tasks"), ("trainer", "select")):
        if isinstance(kept.get(section), Mapping):
            kept[section] = without(kept[section], (key,))
    return digest(kept)


def _load(path: Path, say: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{say}: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UserError(f"{say}: {path} is not a mapping of tasks", "write {task: {metric: value}}")
    return value


def _of_result(result: Mapping[str, Any], split: str | None, path: Path, say: str) -> Mapping[str, Any]:
    """The numbers of one split of a result.json."""
    if split in (None, result.get("split")):
        return result["tasks"]
    if split == "validation" and result.get("validation"):
        return result["validation"]
    raise UserError(
        f"{say}: {path} holds numbers of the {result.get('split')} split, and those of {split} are asked for",
        f"ask for {result.get('split')}, or name a baseline that was evaluated on {split}",
    )


def _numbers(sources: Iterable[Mapping[str, Any]], where: str) -> Numbers:
    """One mapping of several: the mean where a task's metric stands in more than one."""
    found: dict[str, dict[str, list[float]]] = {}
    for source in sources:
        for task, metrics in source.items():
            if not isinstance(metrics, Mapping):
                raise UserError(
                    f"{where}: '{task}' must be a mapping of metrics, not {metrics!r}", "write {task: {metric: value}}"
                )
            for metric, value in metrics.items():
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise UserError(f"{where}: '{task}.{metric}' must be a number, not {value!r}")
                found.setdefault(str(task), {}).setdefault(str(metric), []).append(float(value))
    return {task: {m: fmean(values) for m, values in metrics.items()} for task, metrics in found.items()}
