"""Which numbers are the zero of Δm: given ones, those a run recorded, or single-task runs under the same settings.

All runs of one setting, and all settings that share a baseline, are measured against the same zero: the mean over the
seeds of the baseline. So ± is the spread of the method; the baseline's own spread is stated beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.errors import UserError
from runner.reporting.read import Run, Values, as_values, load, read_run
from runner.reporting.settings import BASELINE_FREE, Setting, deciding, digest, without
from runner.reporting.significance import spread

GIVEN = "given"
"""Stands for the seed of numbers that have none."""


@dataclass
class Baseline:
    """Values per task, metric and seed.

    Attributes:
        words: what it is, for captions. label: for the row.
        samples: task → metric → seed → value. runs: those that gave them, where they are known.
        config: of one of the runs, for the row's cells.
    """

    words: str
    label: str = "single-task"
    samples: dict[str, dict[str, dict[int | str, float]]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def add(self, values: Values, seed: int | str, tasks: Iterable[str] | None = None) -> None:
        """Take in the metrics of one seed, of some tasks."""
        for task in values if tasks is None else tasks:
            for metric, value in values.get(task, {}).items():
                self.samples.setdefault(task, {}).setdefault(metric, {})[seed] = value

    def mean(self, tasks: Iterable[str]) -> Values:
        """The zero of Δm."""
        return {
            task: {metric: spread(seeds).mean for metric, seeds in self.samples.get(task, {}).items()} for task in tasks
        }

    def of_seed(self, seed: int | str, tasks: Iterable[str]) -> Values:
        """The baseline itself as results of one seed, NaN where that seed is missing."""
        return {
            task: {metric: seeds.get(seed, math.nan) for metric, seeds in self.samples.get(task, {}).items()}
            for task in tasks
        }

    def seeds(self) -> list[int | str]:
        """Every seed that a value has, in order."""
        found = {seed for metrics in self.samples.values() for values in metrics.values() for seed in values}
        return sorted(found, key=lambda seed: str(seed).zfill(12))

    def covers(self, tasks: Iterable[str]) -> bool:
        """Whether every task has a value."""
        return all(self.samples.get(task) for task in tasks)


def base_key(config: Mapping[str, Any]) -> str:
    """Settings that share this share their baseline; a run of fewer tasks holds the configuration of fewer tasks."""
    kept = without(deciding(config), BASELINE_FREE)
    if isinstance(kept.get("mixture"), Mapping):
        kept["mixture"] = without(kept["mixture"], ("tasks",))
    return digest(kept)


def _same_tasks(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the tasks that both configurations have are configured alike."""
    mine, theirs = ((c.get("mixture") or {}).get("tasks") or {} for c in (config, other))
    return all(mine[task] == theirs[task] for task in mine if task in theirs)


def needed_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs outside the given paths that given ones name as their baselines or experts, where they can be found."""
    known = {run.signature for run in runs}
    found: dict[str, Run] = {}
    for run in runs:
        for need in run.needs:
            name, signature = need.get("path"), str(need.get("signature"))
            if signature in known or signature in found or not isinstance(name, str):
                continue
            for place in (Path(name), run.path / name):
                if (place / "run.json").is_file():
                    other = read_run(place)
                    other.given = False
                    if other.state == "completed":
                        found[signature] = other
                    break
    return list(found.values())


def given_baseline(word: str, split: str | None) -> Baseline:
    """The baseline that `--baseline DIR|FILE` names.

    A file holds task → metric → value, as JSON or YAML; a `result.json` will do. A folder holds runs; those of one task
    give that task, others all of theirs.

    Raises:
        UserError: nothing there that could be a baseline.
    """
    path = Path(word).expanduser()
    if not path.exists():
        raise UserError(f"--baseline: there is no file or folder '{word}'", "give runs, or a file with numbers")
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"--baseline: '{word}' cannot be read: {' '.join(str(error).split())}") from error
        values = as_values(content.get("tasks", content) if isinstance(content, dict) else None)
        if not values:
            raise UserError(
                f"--baseline: '{word}' holds no numbers", "write them as task: {metric: value}, in YAML or JSON"
            )
        baseline = Baseline(f"the numbers in {path.name}", path.stem)
        baseline.add(values, GIVEN)
        return baseline
    runs = [run for run in load([path]).runs if run.state == "completed"]
    if not runs:
        raise UserError(f"--baseline: no run in '{word}' is completed", "", f"runner status {word}")
    fewest = min(len(run.values(split)) for run in runs)
    runs = [run for run in runs if len(run.values(split)) == fewest]  # single-task runs where there are any
    settings = {digest(without(deciding(run.config), ("tasks",))) for run in runs}
    if len(settings) > 1:
        raise UserError(
            f"--baseline: '{word}' holds runs of {len(settings)} settings", "give a folder with runs of one setting"
        )
    baseline = Baseline(f"the runs in {path}", "baseline", runs=runs, config=runs[0].config)
    for run in runs:
        baseline.add(run.values(split), run.seed if run.seed is not None else GIVEN)
    return baseline


class Pool:
    """The baselines of one group of comparable runs.

    Args:
        single: completed single-task runs. split: which results count; None is each run's own.
    """

    def __init__(self, single: Sequence[Run], split: str | None) -> None:
        self.split = split
        self._single: dict[str, list[Run]] = {}
        for run in sorted(single, key=lambda run: str(run.info.get("created", ""))):
            self._single.setdefault(base_key(run.config), []).append(run)
        self._made: dict[str, Baseline | None] = {}
        self.loose: set[str] = set()

    def find(self, setting: Setting, others: Sequence[Setting], tasks: Sequence[str]) -> tuple[str, Baseline] | None:
        """The baseline of a setting and its name, the same for all settings that share it.

        Args:
            setting: whose. others: all settings, of which those with the same baseline share their recorded numbers.
        """
        run = next(iter(setting.runs.values()), None)
        if run is None:
            return None
        own = _asked(run)
        key = digest([base_key(setting.config), own, sorted(tasks)])
        if key not in self._made:
            self._made[key] = self._make(setting, others, tasks, own)
        made = self._made[key]
        return None if made is None else (key, made)

    def _make(self, setting: Setting, others: Sequence[Setting], tasks: Sequence[str], own: str) -> Baseline | None:
        key = base_key(setting.config)
        single = [run for run in self._single.get(key, []) if _same_tasks(setting.config, run.config)]
        recorded = [r for s in others if base_key(s.config) == key for r in s.runs.values() if _asked(r) == own]
        recorded = [run for run in recorded if as_values(run.result.get("baseline"))]
        if not single and not recorded and len(self._single) == 1:  # better said than left out
            single = next(iter(self._single.values()))
            self.loose.add(setting.label)
        baseline = Baseline("single-task runs")
        for run in single:
            values = run.values(self.split)
            if set(values) <= set(tasks):
                baseline.add(values, run.seed if run.seed is not None else GIVEN)
                baseline.runs.append(run)
                baseline.config = run.config
        if own:  # numbers that a run was given, not runs of the same settings
            baseline = Baseline(f"the baseline of {own}", "baseline")
        same_split = self.split in (None, *(run.result.get("split") for run in recorded))
        for run in recorded if same_split else ():
            seed = GIVEN if own or run.seed is None else run.seed
            baseline.add(as_values(run.result["baseline"]), seed, tasks)
            baseline.config = baseline.config or run.config
        return baseline if baseline.covers(tasks) else None


def _asked(run: Run) -> str:
    """The file or folder that a run was given as its baseline."""
    asked = run.config.get("baseline")
    return asked if isinstance(asked, str) and asked not in ("auto", "none") else ""
