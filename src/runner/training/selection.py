"""Which checkpoint is the best, and when to stop looking for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runner.errors import UserError, suggest
from runner.tasks.base import Task

PLAIN = ("auto", "last")
"""Values of `trainer.select` that name no task."""


class Selection:
    """Follows one number on the validation split.

    Args:
        select: "auto", "task/metric" or "last". Auto is the mean over tasks of the validation loss divided by the loss
            of the run's first evaluation: task losses have different units, and metrics with fractions, metres and
            degrees cannot be averaged. Lower is better. With "last" every evaluation is better than those before.
        tasks: name → task.
        patience: evaluations without a better score until `exhausted`; None never.

    Raises:
        UserError: `select` names no task or no metric of it.
    """

    def __init__(self, select: str, tasks: Mapping[str, Task], patience: int | None) -> None:
        self.select = select
        self.patience = patience
        self.sign = 1.0
        if select not in PLAIN:
            self.task, _, self.metric = select.partition("/")
            if self.task not in tasks:
                raise UserError(f"trainer.select={select}: there is no task '{self.task}'", suggest(self.task, tasks))
            directions = dict(tasks[self.task].directions) | {"loss": "down"}
            if self.metric not in directions:
                raise UserError(
                    f"trainer.select={select}: task '{self.task}' has no metric '{self.metric}'",
                    suggest(self.metric, directions),
                )
            self.sign = -1.0 if directions[self.metric] == "up" else 1.0
        self.first: dict[str, float] = {}
        self.score = math.nan
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.best_results: dict[str, dict[str, float]] = {}
        self.waited = 0

    def update(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Take in one evaluation. The first counts as the best, also where its score is not a number."""
        self.score = self._score(results)
        better = self.select == "last" or self.best_score is None
        better = better or (math.isfinite(self.score) and not self.sign * self.score >= self.sign * self.best_score)
        if better:
            self.best_score, self.best_step, self.waited = self.score, step, 0
            self.best_results = {task: dict(values) for task, values in results.items()}
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row brought nothing better."""
        return self.patience is not None and self.waited >= self.patience

    def extra(self) -> dict[str, dict[str, float]]:
        """What a log needs besides the results themselves: the number that "auto" follows."""
        return {"": {"relative_loss": self.score}} if self.select in PLAIN else {}

    def _score(self, results: Mapping[str, Mapping[str, float]]) -> float:
        if self.select not in PLAIN:
            return results[self.task][self.metric]
        losses = {name: values["loss"] for name, values in results.items() if not math.isnan(values["loss"])}
        self.first = {name: abs(loss) or 1.0 for name, loss in losses.items()} | self.first
        return sum(loss / self.first[name] for name, loss in losses.items()) / len(losses) if losses else math.nan

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "first": self.first,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "best_results": self.best_results,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.first = dict(state["first"])
        self.best_score, self.best_step, self.waited = state["best_score"], state["best_step"], state["waited"]
        self.best_results = {task: dict(values) for task, values in state["best_results"].items()}
