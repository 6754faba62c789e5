"""Numbers that Δm is measured against: read from a mapping, a file, a run or a folder of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from runner.errors import UserError

Numbers = dict[str, dict[str, float]]
"""Task → metric → value."""


def read_baseline(given: str | Mapping[str, Any], tasks: Sequence[str], split: str) -> Numbers:
    """The baseline that `baseline=` names, for the tasks of a run.

    Args:
        given: task → metric → value; or a path to a JSON or YAML file of it, to a result.json, to a run, or to a folder
            of runs. Where several runs have a task (seeds), the mean over them is taken.
        tasks: the run's tasks; others are left out.
        split: "test" or "validation", which of a run's numbers count.

    Raises:
        UserError: what cannot be found or read, or a task without numbers.
    """
    if isinstance(given, Mapping):
        numbers, where = _numbers([given], "baseline"), "baseline"
    else:
        path = Path(given)
        numbers, where = _numbers(_from_path(path, split), str(path)), str(path)
    missing = [task for task in tasks if task not in numbers]
    if missing:
        raise UserError(
            f"{where} has no baseline for {', '.join(missing)}",
            f"it has {', '.join(numbers) or 'no task at all'}",
        )
    return {task: numbers[task] for task in tasks}


def _from_path(path: Path, split: str) -> list[Mapping[str, Any]]:
    """Every task → metric → value that lies at a path."""
    if path.is_dir():
        results = [path / "result.json"] if (path / "result.json").is_file() else sorted(path.rglob("result.json"))
        if not results:
            raise UserError(f"baseline: there is no result.json in or below {path}", "name a COMPLETED run", "")
        return [_of_result(_load(result), split, result) for result in results]
    if not path.is_file():
        raise UserError(
            f"baseline: there is no {path}",
            "auto, none, a run's folder, or a file of numbers: {task: {metric: value}}",
        )
    value = _load(path)
    return [_of_result(value, split, path) if "tasks" in value and "split" in value else value]


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"baseline: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UserError(f"baseline: {path} is not a mapping of tasks", "write {task: {metric: value}}")
    return value


def _of_result(result: Mapping[str, Any], split: str, path: Path) -> Mapping[str, Any]:
    """The numbers of one split of a result.json."""
    if result.get("split") == split:
        return result["tasks"]
    if split == "validation" and result.get("validation"):
        return result["validation"]
    raise UserError(
        f"baseline: {path} holds numbers of the {result.get('split')} split, this run ends with {split}",
        f"set trainer.final_split={result.get('split')}, or name a baseline that was evaluated on {split}",
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
