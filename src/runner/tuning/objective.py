"""What a search improves: numbers of the validation split, never of the test split.

Optuna minimises all of them; metrics of which more is better enter with a minus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.config.keys import signature
from runner.errors import Problem, suggest

Metrics = Mapping[str, Mapping[str, float | None]]
"""Task → metric → value, of one evaluation."""


@dataclass
class Objective:
    """One number, or several for a Pareto front.

    Attributes:
        kind: "relative": the mean over tasks of the headline metric's relative change against the first completed
            trial, in percent, more is better. "metrics": one metric, or several as a front.
        targets: (task, metric) pairs; a metric of None is the task's headline.
        headline, directions: of every task; known once a trial has completed.
        reference: the headline values of the first completed trial.
    """

    kind: Literal["relative", "metrics"]
    targets: list[tuple[str, str | None]]
    headline: dict[str, str] = field(default_factory=dict)
    directions: dict[str, dict[str, str]] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return 1 if self.kind == "relative" else len(self.targets)

    @property
    def known(self) -> bool:
        """Whether a trial has completed, so that values can be computed."""
        return bool(self.headline)

    @property
    def names(self) -> list[str]:
        """What the numbers are called."""
        if self.kind == "relative":
            return ["relative change %"]
        return [f"{task}/{self._metric(task, metric)}" for task, metric in self.targets]

    @property
    def arrows(self) -> list[str]:
        """↑ or ↓ for each number; "" while it is not known."""
        if self.kind == "relative":
            return ["↑"]
        return [{"up": "↑", "down": "↓"}[self._direction(t, m)] if self.known else "" for t, m in self.targets]

    def learn(self, result: Mapping[str, Any]) -> bool:
        """Take names, directions and the reference from the result of a completed trial; False if they were known."""
        if self.known:
            return False
        self.headline = {str(task): str(metric) for task, metric in result["headline"].items()}
        self.directions = {task: dict(ways) for task, ways in result["directions"].items()}
        metrics = result["validation"]
        self.reference = {
            task: float(metrics[task][metric])
            for task, metric in self.headline.items()
            if _finite(metrics.get(task, {}).get(metric))
        }
        return True

    def state(self) -> dict[str, Any]:
        """What `learn` found, for the study."""
        return {"headline": self.headline, "directions": self.directions, "reference": self.reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        self.headline = dict(state["headline"])
        self.directions = {task: dict(ways) for task, ways in state["directions"].items()}
        self.reference = dict(state["reference"])

    def natural(self, metrics: Metrics) -> list[float] | None:
        """The numbers as a person reads them; None where one of them is undefined."""
        if not self.known:
            return None
        if self.kind == "relative":
            parts = []
            for task, before in self.reference.items():
                now = metrics.get(task, {}).get(self.headline[task])
                if not _finite(now):
                    return None
                sign = 1.0 if self._direction(task, None) == "up" else -1.0
                parts.append(100.0 * sign * (float(now or 0.0) - before) / (abs(before) or 1.0))
            return [sum(parts) / len(parts)] if parts else None
        found = [metrics.get(task, {}).get(self._metric(task, metric)) for task, metric in self.targets]
        return [float(v) for v in found if v is not None] if all(map(_finite, found)) else None

    def signs(self) -> list[float]:
        """-1 for numbers of which more is better: what turns them into Optuna's and back."""
        if self.kind == "relative":
            return [-1.0]
        return [-1.0 if self._direction(t, m) == "up" else 1.0 for t, m in self.targets]

    def minimised(self, metrics: Metrics) -> list[float] | None:
        """The numbers as Optuna gets them."""
        values = self.natural(metrics)
        return None if values is None else [sign * v for sign, v in zip(self.signs(), values, strict=True)]

    def _metric(self, task: str, metric: str | None) -> str:
        return metric or self.headline.get(task, "headline")

    def _direction(self, task: str, metric: str | None) -> str:
        return self.directions.get(task, {}).get(self._metric(task, metric), "down")  # `loss` goes down


def read_objective(text: str | Sequence[str], config: Mapping[str, Any]) -> tuple[Objective, list[Problem]]:
    """`tune.objective` against the tasks of a frozen configuration."""
    tasks = config["mixture"]["tasks"]
    if text == "relative":
        return Objective("relative", [(task, None) for task in tasks]), []
    if text == "pareto":
        if len(tasks) < 2:
            what = f"tune.objective=pareto needs several tasks, and there is only '{next(iter(tasks))}'"
            return Objective("metrics", []), [Problem(what, f"tune.objective={next(iter(tasks))}")]
        return Objective("metrics", [(task, None) for task in tasks]), []
    words = [text] if isinstance(text, str) else [str(word) for word in text]
    problems = [Problem("tune.objective=[] names nothing to improve", "relative, pareto, TASK or TASK/METRIC")]
    problems = problems if not words else []
    targets: list[tuple[str, str | None]] = []
    for word in words:
        task, _, metric = word.partition("/")
        if task not in tasks:
            valid = [*tasks, *(["relative", "pareto"] if isinstance(text, str) else [])]
            problems.append(Problem(f"tune.objective: there is no task '{task}'", suggest(task, valid)))
            continue
        key = signature(tasks[task]["_target_"]).get("headline")
        metrics = [str(m) for m in key.kind.choices] if key else []  # a task's headline may be any of its metrics
        if metric and metrics and metric not in metrics:
            what = f"tune.objective: task '{task}' has no metric '{metric}'"
            problems.append(Problem(what, suggest(metric, metrics, limit=20)))
            continue
        if (task, metric or None) in targets:
            problems.append(Problem(f"tune.objective names '{word}' twice", "name each number once"))
        targets.append((task, metric or None))
    return Objective("metrics", targets), problems


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
