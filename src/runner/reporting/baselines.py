"""Which numbers are the zero of Δm: given ones, those a run recorded, or single-task runs under the same settings.

All runs of one setting, and all settings that share a baseline, are measured against the same zero: the mean over the
seeds of the baseline. So ± is the spread of the method; the baseline's own spread is stated beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.reporting.given import base_key, read_sources
from runner.reporting.read import Run, Values, as_values, read_run
from runner.reporting.settings import Setting, without
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


def agree(config: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the tasks and the keys of the architecture (its heads) that both configurations have are alike."""
    mine, theirs = ((c.get("mixture") or {}).get("tasks") or {} for c in (config, other))
    heads, others = (without(c.get("architecture") or {}, ("_target_",)) for c in (config, other))
    return all(mine[task] == theirs[task] for task in mine if task in theirs) and all(
        heads[key] == others[key] for key in heads if key in others
    )


def needed_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs outside the given paths that given ones name as their baselines or experts, where they can be found."""
    known, tried = {run.signature for run in runs}, set[str]()
    found: dict[str, Run] = {}
    for run in runs:
        for need in run.needs:
            name, signature = need.get("path"), str(need.get("signature"))
            if signature in known or signature in found or not isinstance(name, str) or name in tried:
                continue
            tried.add(name)
            for place in (Path(name), run.path / name):
                if (place / "run.json").is_file():
                    other = read_run(place)
                    other.given = False
                    if other.state == "completed":
                        found[signature] = other
                    break
    return list(found.values())


def given_baseline(word: str, split: str | None) -> Baseline:
    """The baseline that `--baseline DIR|FILE` names, read as `baseline=DIR|FILE` of `runner train` is.

    Raises:
        UserError: nothing there that could be a baseline.
    """
    path = Path(word).expanduser()
    sources = read_sources(path, split, "--baseline")
    runs = [source.run for source in sources if source.run is not None]
    if path.is_file():
        baseline = Baseline(f"the numbers in {path.name}", path.stem)
    else:
        baseline = Baseline(f"the runs in {path}", "baseline", runs=runs, config=runs[0].config if runs else {})
    for source in sources:
        seed = source.run.seed if source.run is not None else None
        baseline.add(source.numbers, GIVEN if seed is None else seed)
    if not baseline.samples:
        raise UserError(
            f"--baseline: '{word}' holds no numbers", "write them as task: {metric: value}, in YAML or JSON"
        )
    return baseline


class Pool:
    """The baselines of one group of comparable runs.

    Args:
        single: completed single-task runs. settings: all rows, of which those with the same baseline share their
            recorded numbers. tasks: of the rows. split: which results count; None is each run's own.
    """

    def __init__(
        self, single: Sequence[Run], settings: Sequence[Setting], tasks: Sequence[str], split: str | None
    ) -> None:
        self.tasks, self.split = tasks, split
        self.loose: list[str] = []
        self._single: dict[str, list[Run]] = {}
        for run in sorted(single, key=lambda run: str(run.info.get("created", ""))):
            self._single.setdefault(base_key(run.config), []).append(run)
        self._settings: dict[str, list[Setting]] = {}
        for setting in settings:
            self._settings.setdefault(base_key(setting.config), []).append(setting)

    def find(self, setting: Setting) -> Baseline | None:
        """The baseline of a setting; None where a task has no number."""
        key = base_key(setting.config)
        single = [run for run in self._single.get(key, []) if agree(setting.config, run.config)]
        own = next((_given(run) for run in setting.runs.values()), "")
        recorded = [
            run
            for other in self._settings.get(key, [])
            if agree(setting.config, other.config)
            for run in other.runs.values()
            if self._has_recorded(run) and _given(run) == own
        ]
        if not single and not recorded and len(self._single) == 1:  # better said than left out
            single = next(iter(self._single.values()))
            self.loose.append(setting.label)
        baseline = Baseline(own or "single-task runs", "baseline" if own else "single-task")
        for run in () if own else single:  # numbers that were given are not those of runs
            values = run.values(self.split)
            if set(values) <= set(self.tasks):
                baseline.add(values, run.seed if run.seed is not None else GIVEN)
                baseline.runs.append(run)
                baseline.config = run.config
        for run in recorded:
            seed = GIVEN if own or run.seed is None else run.seed
            baseline.add(as_values(run.result["baseline"]), seed, self.tasks)
            baseline.config = baseline.config or run.config
        return baseline if baseline.covers(self.tasks) else None

    def _has_recorded(self, run: Run) -> bool:
        return self.split in (None, run.result.get("split")) and bool(as_values(run.result.get("baseline")))


def _given(run: Run) -> str:
    """What a run was given as its baseline, in words; empty for single-task runs under its own settings."""
    asked = run.config.get("baseline")
    if isinstance(asked, Mapping):
        return "the numbers in the configuration"
    return f"the baseline of {asked}" if isinstance(asked, str) and asked not in ("auto", "none") else ""
