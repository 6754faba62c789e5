"""Merges beside joint training: mean over tasks, what is left of the experts, the way from base to experts, storage.

Every merge's result.json holds the metrics of its experts, and of the base under their heads. A run that trained the
same tasks jointly, with the same settings and seed, is measured by them as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.reporting.model import Row
from runner.reporting.read import Run, Values, as_values
from runner.reporting.settings import Setting, digest, without

COLUMNS: dict[str, tuple[str, str, int]] = {
    "merge/mean": ("mean", "up", 4),
    "merge/normalised": ("of experts", "up", 3),
    "merge/gap": ("of gap", "up", 3),
    "merge/bytes": ("stored", "down", 2),
}
"""Column → heading, direction, decimals."""

WORDS = {
    "merge/mean": "mean: of the headline metrics over tasks",
    "merge/normalised": "of experts: merged / expert, the mean over tasks",
    "merge/gap": "of gap: (merged - base) / (experts - base), of the means; the base has the experts' heads",
    "merge/bytes": "stored: bytes, one model being 1",
}


@dataclass(frozen=True)
class Ends:
    """Between what a merge lies: metrics of its experts and of the base, each with the bytes that it takes."""

    experts: Values
    base: Values
    count: int

    def measure(self, values: Values, heads: Mapping[str, str], directions: Mapping[str, Mapping[str, str]]) -> Values:
        """`{"merge": {mean, normalised, gap}}` of a model; what cannot be told is left out."""
        tasks = [task for task in heads if task in self.experts and task in self.base]
        if not tasks or len(tasks) < len(heads):
            return {"merge": {}}
        own, experts, base = ([_at(found, t, heads) for t in tasks] for found in (values, self.experts, self.base))
        up = [directions.get(t, {}).get(heads[t]) != "down" for t in tasks]
        found = {"normalised": _mean(_ratio(*pair) for pair in zip(own, experts, up, strict=True))}
        if len({heads[task] for task in tasks}) == 1:  # metrics of different units have no mean
            found["mean"] = _mean(own)
            gap = _mean(experts) - _mean(base)
            found["gap"] = (_mean(own) - _mean(base)) / gap if abs(gap) > 1e-9 else math.nan
        return {"merge": found}


def _at(values: Values, task: str, heads: Mapping[str, str]) -> float:
    return values.get(task, {}).get(heads[task], math.nan)


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _ratio(own: float, expert: float, up: bool) -> float:
    above, below = (own, expert) if up else (expert, own)
    return above / below if below else math.nan


class Merges:
    """The merges of a table: columns for its rows, and rows for experts and base.

    Args:
        settings: of the table. split: of its numbers, where it is not each run's own; experts have theirs only.
        heads: task → headline metric. directions: task → metric → direction.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        split: str | None,
        heads: Mapping[str, str],
        directions: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.split, self.heads, self.directions = split, heads, directions
        self.known: dict[tuple[str, int | str], list[Ends]] = {}
        self.cells: dict[str, list[dict[str, str]]] = {}
        for setting in settings:
            for seed, run in setting.runs.items():
                ends = self._own(run)
                if ends is not None:
                    self.cells.setdefault(_key(setting), []).append(setting.cells)
                    found = self.known.setdefault((_key(setting), seed), [])
                    if ends not in found:
                        found.append(ends)

    def samples(self, setting: Setting) -> dict[str, dict[int | str, float]]:
        """Column → seed → value of a setting's runs."""
        found: dict[str, dict[int | str, float]] = {}
        for seed, run in setting.runs.items():
            ends = self._own(run)
            if ends is None and not _merged(run):
                same = self.known.get((_key(setting), seed), [])
                ends = same[0] if len(same) == 1 else None
            if ends is None:
                continue
            numbers = ends.measure(run.values(self.split), self.heads, self.directions)["merge"]
            numbers["bytes"] = stored(run)
            for name, value in numbers.items():
                if math.isfinite(value):
                    found.setdefault(f"merge/{name}", {})[seed] = value
        return found

    def rows(self) -> list[Row]:
        """Base and experts, once for each way in which experts were made."""
        found = []
        for key in dict.fromkeys(key for key, _ in self.known):
            ends = {seed: each[0] for (k, seed), each in self.known.items() if k == key and len(each) == 1}
            if not ends:
                continue
            cells = {
                name: values.pop()
                for name in self.cells[key][0]
                if len(values := {own.get(name, "") for own in self.cells[key]}) == 1
            }
            for label in ("base", "experts"):
                samples: dict[str, dict[int | str, float]] = {}
                for seed, each in ends.items():
                    values = each.base if label == "base" else each.experts
                    numbers = values | each.measure(values, self.heads, self.directions)
                    numbers["merge"]["bytes"] = 1.0 if label == "base" else float(each.count)
                    for task, metrics in numbers.items():
                        for metric, value in metrics.items():
                            samples.setdefault(f"{task}/{metric}", {})[seed] = value
                found.append(Row("between", label, cells, {**samples}, len(ends)))
        return found

    def _own(self, run: Run) -> Ends | None:
        if not _merged(run) or self.split not in (None, run.result.get("split")):
            return None
        experts, base = as_values(run.result.get("experts")), as_values(run.result.get("base"))
        merge = run.result.get("merge")
        names = merge.get("experts") if isinstance(merge, Mapping) else None
        return Ends(experts, base, len(names) if isinstance(names, Mapping) else len(experts)) if experts else None


def _merged(run: Run) -> bool:
    return isinstance(run.result.get("merge"), Mapping)


def _key(setting: Setting) -> str:
    """Settings that differ in their merge only share it."""
    return digest(without(setting.config, ("merge", "merging")))


def stored(run: Run) -> float:
    """Bytes that a run's result takes, one model being 1; NaN where it is not known."""
    merge = run.result.get("merge")
    if not isinstance(merge, Mapping):
        return 1.0
    size, one = merge.get("bytes"), merge.get("model_bytes")
    return size / one if isinstance(size, int | float) and isinstance(one, int | float) and one else math.nan
