"""From runs to tables: settings as rows, metrics, Δm, rank and cost as columns, verdicts on all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.config.signature import flatten
from runner.reporting.baselines import GIVEN, Baseline, Pool, base_key, given_baseline, needed_runs
from runner.reporting.costs import costs, summed_costs
from runner.reporting.delta_m import RULES, DeltaM, delta_m
from runner.reporting.merges import COLUMNS, Merges
from runner.reporting.model import Metric, Report, Row, Table
from runner.reporting.options import option_name
from runner.reporting.read import Found, Run, Values, as_values
from runner.reporting.settings import (
    BASELINE_FREE,
    Setting,
    collect,
    digest,
    find_columns,
    text_value,
)
from runner.reporting.significance import Samples, ranks, spread, verdicts


def build(found: Found, *, split: str | None = None, baseline: str | None = None, chosen: str = "survey") -> Report:
    """Tables of everything that was found.

    Args:
        found: runs and sweeps. split: "test" or "validation" instead of each run's final split.
        baseline: a file or folder, "none", or None for what the runs themselves say.
        chosen: the Δm definition that rows are ordered by.

    Raises:
        UserError: the baseline cannot be read.
    """
    everything = [*found.runs, *needed_runs(found.runs)]
    trained = {run.signature: run for run in everything if run.verb != "eval" and run.config}
    fixed = given_baseline(baseline, split) if baseline not in (None, "none") else None
    bare = [run for run in found.runs if not run.config]
    broken = [run for run in bare if run.state != "waiting"]
    waiting = [run for run in bare if run.state == "waiting"]
    groups: dict[tuple[str, str], dict[tuple[str, ...], list[Run]]] = {}
    for run in everything:
        if run.config:
            config = configuration(run, trained)
            place = (_mixture(config), _split(run, split))
            groups.setdefault(place, {}).setdefault(tuple(sorted(_tasks(run, config))), []).append(run)
    tables = []
    for (mixture, name), by_tasks in groups.items():
        singles = _take_singles(by_tasks)
        zero = [run for run in singles if run.state == "completed" and run.verb == "train"]
        for runs in by_tasks.values():
            own = [run for run in runs if run.given]
            if own:
                maker = _Maker(own, trained, mixture, name, split, [s.axes for s in found.sweeps])
                tables.append(maker.table(zero, fixed, baseline == "none", chosen))
        if singles and by_tasks:
            own = [run for run in singles if run.given and run.state != "completed"]
            tables[-1].unfinished += own
    return Report(tables, found, broken, waiting, chosen)


def configuration(run: Run, trained: Mapping[str, Run]) -> Mapping[str, Any]:
    """What made a run's weights: of an evaluation, the configuration of the run it looked at, and what it asked."""
    if run.verb != "eval":
        return run.config
    asked = {key: run.config[key] for key in ("checkpoint",) if key in run.config}
    looked_at = trained.get(run.signature)
    return (looked_at.config if looked_at is not None else {"run": run.config.get("run")}) | asked


def _mixture(config: Mapping[str, Any]) -> str:
    mixture = config.get("mixture")
    return option_name("mixture._target_", dict(flatten({"mixture": mixture}))) if isinstance(mixture, Mapping) else ""


def _tasks(run: Run, config: Mapping[str, Any]) -> list[str]:
    values = run.values()
    if values:
        return list(values)
    mixture = config.get("mixture")
    known = mixture.get("tasks") if isinstance(mixture, Mapping) else None
    return list(config.get("tasks") or (known if isinstance(known, Mapping) else ()))


def _split(run: Run, split: str | None) -> str:
    if split is not None:
        return split
    trainer = run.config.get("trainer")
    asked = trainer.get("final_split") if isinstance(trainer, Mapping) else run.config.get("split")
    return str(run.result.get("split") or asked or "validation")


def _take_singles(by_tasks: dict[tuple[str, ...], list[Run]]) -> list[Run]:
    """Take out the single-task runs that are baselines: those of a task that joint runs have too."""
    joint = {task for tasks in by_tasks if len(tasks) > 1 for task in tasks}
    names = [tasks for tasks in by_tasks if len(tasks) == 1 and tasks[0] in joint]
    return [run for name in names for run in by_tasks.pop(name)]


class _Maker:
    """Makes one table."""

    def __init__(
        self, runs: list[Run], trained: Mapping[str, Run], mixture: str, split: str, chosen_split: str | None,
        axes: Sequence[Sequence[str]],
    ) -> None:  # fmt: skip
        self.mixture, self.split, self.chosen_split = mixture, split, chosen_split
        self.settings = [s for s in collect(runs, lambda run: configuration(run, trained)) if s.config]
        self.done = [run for setting in self.settings for run in setting.runs.values()]
        self.unfinished = [run for s in self.settings for run in s.other if run.state != "completed"]
        self.repeated = sum(run.state == "completed" for s in self.settings for run in s.other)
        # A setting without a number is no row, but its parameters may still be what varies.
        self.columns = find_columns(self.settings, list(dict.fromkeys(key for keys in axes for key in keys)))
        self.settings = [setting for setting in self.settings if setting.runs]
        first = self.done[0] if self.done else runs[0]
        self.tasks = _tasks(first, configuration(first, trained))
        self.directions, self.heads = self._describe()
        self.metrics = self._metrics()
        self.merges = Merges(self.settings, self.chosen_split, self._headlines(), self.directions)

    def table(self, single: Sequence[Run], fixed: Baseline | None, no_baseline: bool, chosen: str) -> Table:
        """The table.

        Args:
            single: completed single-task runs of the same data. fixed: the baseline of all, instead of theirs.
            no_baseline: leave Δm out. chosen: the Δm definition that rows are ordered by.
        """
        pool = Pool(single, self.settings, self.tasks, self.chosen_split)
        zeros: dict[str, Baseline] = {}
        undefined: set[str] = set()
        rows = []
        for setting in self.settings:
            row = self._row(setting)
            rows.append(row)
            zero = None if no_baseline else pool.find(setting) if fixed is None else fixed
            if zero is not None and zero.covers(self.tasks):
                zeros.setdefault(f"{digest(zero.samples)}{base_key(setting.config)}", zero)
                seeds = {seed: run.values(self.chosen_split) for seed, run in setting.runs.items()}
                row.samples = {**row.samples, **self._changes(seeds, zero.mean(self.tasks), undefined)}
        bases = self._baseline_rows(zeros.values())
        self._judge(rows)
        rows.sort(key=lambda row: self._order(row, chosen))
        published = self._published()
        between = self.merges.rows()
        for row in (*bases, *published, *between):
            row.spreads = {key: spread(samples) for key, samples in row.samples.items()}
        return Table(
            tasks=self.tasks,
            split=self.split,
            mixture=self.mixture,
            rows=[*bases, *published, *between, *rows],
            metrics=self.metrics,
            columns=self.columns,
            definitions=[name for name in RULES if any(f"Δm/{name}" in row.samples for row in rows)],
            baseline="; ".join(dict.fromkeys(baseline.words for baseline in zeros.values())),
            unfinished=self.unfinished,
            repeated=self.repeated,
            loose=pool.loose,
            undefined=sorted(undefined),
        )

    def _describe(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Directions and headline metrics, from the results and, before there are any, from the configuration."""
        directions: dict[str, dict[str, Any]] = {task: {} for task in self.tasks}
        heads: dict[str, str] = {}
        for run in self.done:
            for task, known in (run.result.get("directions") or {}).items():
                directions.setdefault(task, {}).update(known)
            heads |= {t: h for t, h in (run.result.get("headline") or {}).items() if t not in heads}
        for known in directions.values():
            known.setdefault("loss", "down")  # nobody's metric, but less of it is always better
        return directions, heads

    def _metrics(self) -> list[Metric]:
        found: list[Metric] = []
        for task in self.tasks:
            names = dict.fromkeys(m for run in self.done for m in run.values(self.chosen_split).get(task, {}))
            head = self.heads.get(task) or next((name for name in names if name != "loss"), "loss")
            for name in sorted(names, key=lambda name: (name != head, name == "loss")):
                better = self.directions.get(task, {}).get(name, "")
                found.append(Metric(task, name, better, name == head))
        return found

    def _row(self, setting: Setting) -> Row:
        samples: dict[str, dict[int | str, float]] = {}
        for seed, run in setting.runs.items():
            for task, metrics in run.values(self.chosen_split).items():
                for metric, value in metrics.items():
                    samples.setdefault(f"{task}/{metric}", {})[seed] = value
            for cost, value in costs(run.result).items():
                samples.setdefault(cost, {})[seed] = value
        samples |= self.merges.samples(setting)
        label = setting.label or str(next(iter(setting.all_runs)).info.get("name") or "all runs")
        return Row("setting", label, setting.cells, {**samples}, len(setting.runs), setting, setting.all_runs)

    def _changes(self, seeds: Mapping[int | str, Values], mean: Values, undefined: set[str]) -> dict[str, Samples]:
        """Δm by every definition, per seed."""
        found: dict[str, dict[int | str, float]] = {}
        for name in RULES:
            for seed, values in seeds.items():
                results = {task: values.get(task, {}) for task in self.tasks}
                change: DeltaM = delta_m(name, results, mean, self.directions, headlines=self.heads)  # type: ignore[arg-type]
                undefined.update(change.undefined)
                found.setdefault(f"Δm/{name}", {})[seed] = change.value
        return {**found}

    def _baseline_rows(self, baselines: Iterable[Baseline]) -> list[Row]:
        """A row for each baseline; those with the same numbers share one, without the cells in which they differ."""
        rows: dict[str, Row] = {}
        for baseline in baselines:
            row = self._baseline_row(baseline)
            other = rows.setdefault(digest(baseline.samples), row)
            if row.runs and not other.runs:  # recorded numbers only; here are the runs, and so their cost
                other.runs, other.samples = row.runs, row.samples
            other.cells = {key: value if row.cells.get(key) == value else "" for key, value in other.cells.items()}
        return list(rows.values())

    def _baseline_row(self, baseline: Baseline) -> Row:
        seeds = baseline.seeds()
        samples: dict[str, Samples] = {
            f"{task}/{metric}": values
            for task in self.tasks
            for metric, values in baseline.samples.get(task, {}).items()
        }
        mean = baseline.mean(self.tasks)
        if seeds:
            samples |= self._changes({s: baseline.of_seed(s, self.tasks) for s in seeds}, mean, set())
        samples |= summed_costs(baseline.runs)
        n = len([seed for seed in seeds if seed != GIVEN])
        return Row("baseline", baseline.label, self._base_cells(baseline), samples, n, None, baseline.runs)

    def _base_cells(self, baseline: Baseline) -> dict[str, str]:
        """What a baseline shares with the runs measured against it; its own architecture and weighting say nothing."""
        flat = dict(flatten(baseline.config))
        cells = {}
        for name in self.columns.names:
            part = f"{name}._target_"
            cells[name] = text_value(flat[name]) if name in flat else option_name(part, flat) if part in flat else ""
            if name.split(".")[0] in BASELINE_FREE:
                cells[name] = ""
        return cells

    def _published(self) -> list[Row]:
        """One row for each set of numbers that the configurations quote."""
        found: dict[str, Row] = {}
        for run in self.done:
            reference = as_values(run.config.get("reference"))
            values = {task: metrics for task, metrics in reference.items() if task in self.tasks}
            if values and digest(values) not in found:
                samples = {f"{t}/{m}": {GIVEN: value} for t, ms in values.items() for m, value in ms.items()}
                found[digest(values)] = Row("published", "published", {}, {**samples}, 0)
        return list(found.values())

    def _judge(self, rows: list[Row]) -> None:
        """Means, spreads, verdicts and mean ranks."""
        for row in rows:
            row.spreads = {key: spread(samples) for key, samples in row.samples.items()}
        judged: dict[str, Any] = {metric.key: metric.better for metric in self.metrics if metric.better}
        judged |= {key: better for key, (_, better, _) in COLUMNS.items() if key != "merge/bytes"}
        judged |= {f"Δm/{name}": "up" if rule.better == "higher" else "down" for name, rule in RULES.items()}
        for key, better in judged.items():
            for row, verdict in zip(rows, verdicts([row.samples.get(key, {}) for row in rows], better), strict=True):
                if verdict is not None:
                    row.verdicts[key] = verdict
        if not any(verdict.test for row in rows for verdict in row.verdicts.values()):
            for row in rows:  # nobody has enough seeds: one sentence says so better than a mark in every cell
                row.verdicts = {key: verdict for key, verdict in row.verdicts.items() if verdict.mark == "best"}
        if len(rows) > 1:
            heads = [metric for metric in self.metrics if metric.headline and metric.better]
            columns = [
                ranks([_mean(row, metric.key) for row in rows], metric.better)  # type: ignore[arg-type]
                for metric in heads
            ]
            for place, row in enumerate(rows):
                known = [column[place] for column in columns if math.isfinite(column[place])]
                row.rank = sum(known) / len(known) if known else math.nan

    def _headlines(self) -> dict[str, str]:
        return {metric.task: metric.name for metric in self.metrics if metric.headline}

    def _order(self, row: Row, chosen: str) -> tuple[bool, float, float]:
        change = _mean(row, f"Δm/{chosen}")
        value = -change if RULES[chosen].better == "higher" else change
        if not math.isfinite(value):
            value = -_mean(row, "merge/normalised")
        return (
            not math.isfinite(value),
            value if math.isfinite(value) else 0.0,
            row.rank if math.isfinite(row.rank) else 0.0,
        )


def _mean(row: Row, key: str) -> float:
    return row.spreads[key].mean if key in row.spreads else math.nan
