"""Coefficient search without gradients: grid, random, CMA-ES or Bayesian, over any rule's parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from runner.config.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from runner.errors import Problem, UserError, suggest
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData, slices, take
from runner.merging.memory import line, merge_in_memory
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.sources import Models
from runner.merging.with_data.common import base_of, inner_rule, vectors_of

Point = np.ndarray


@dataclass(kw_only=True)
class Search(DataMerge):
    """Tries values of a rule's parameters on a few examples of the given tasks and keeps the best.

    Attributes:
        rule: the strategy whose parameters are searched, a config with a `_target_`; null is task arithmetic.
        parameters: parameter → [lowest, highest]; "weights" is one number per expert.
        method: "grid" (`evaluations` points in all), "random", "cma" (CMA-ES, Hansen 2016, arXiv 1604.00772) or "bayes"
            (tree-structured Parzen estimators of optuna, which must be installed).
        evaluations: how many points are tried.
        objective: "metric": validation headline relative to the experts; "loss": mean loss on few labelled examples,
            relative to the start's.
        shots: labelled examples per task for "loss".
        penalty: of the mean absolute weight, as in LoraHub (arXiv 2307.13269, equation 4).
        sigma: first standard deviation of CMA-ES, in units of the parameters' ranges.
        start: where CMA-ES begins: "middle" of the ranges, or "zero".
        seed: of the search.
    """

    needs: ClassVar[Literal["weights", "unlabelled", "labelled"]] = "labelled"

    rule: dict[str, Any] | None = None
    parameters: dict[str, list[float]] = field(default_factory=lambda: {"weights": [0.0, 1.0]})
    method: Literal["grid", "random", "cma", "bayes"] = "cma"
    evaluations: PositiveInt = 60
    objective: Literal["metric", "loss"] = "metric"
    shots: PositiveInt = 16
    penalty: NonNegativeFloat = 0.0
    sigma: PositiveFloat = 0.25
    start: Literal["middle", "zero"] = "middle"
    seed: int = 0

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        rule = inner_rule(self.rule)
        found = [*super().check(experts, has_base), *rule.check(experts, has_base)]
        known = [f.name for f in fields(rule)]
        for name, limits in self.parameters.items():
            if name not in known:
                found.append(Problem(f"merge.parameters: {type(rule).__name__} has no '{name}'", suggest(name, known)))
            if len(limits) != 2 or not limits[0] < limits[1]:
                found.append(Problem(f"merge.parameters.{name} must be [lowest, highest], not {limits}"))
        return found

    def fit(self, models: Models, data: TaskData) -> Merged:
        rule = inner_rule(self.rule)
        space = self._space(len(models.names))
        merge = self._merger(rule, models)
        score = self._score(data)
        tried: list[dict[str, Any]] = []
        best: tuple[float, Point] | None = None

        def value(point: Point) -> float:
            """Lower is better."""
            nonlocal best
            chosen = self._values(point, len(models.names))
            found = score(merge(chosen))
            weights = chosen.get("weights")
            if self.penalty and weights is not None:
                found += self.penalty * float(np.mean(np.abs(weights)))
            tried.append({"value": round(found, 6), **chosen})
            if best is None or found < best[0]:
                best = (found, point.copy())
            return found

        self._minimise(value, np.array(space, dtype=float))
        assert best is not None
        chosen = self._values(best[1], len(models.names))
        return Merged(merge(chosen), report={"chosen": chosen, "value": round(best[0], 6), "tried": tried})

    def _space(self, experts: int) -> list[list[float]]:
        return [limits for name, limits in self.parameters.items() for _ in range(experts if name == "weights" else 1)]

    def _values(self, point: Point, experts: int) -> dict[str, Any]:
        numbers: Iterator[float] = iter(point.tolist())
        return {
            name: [next(numbers) for _ in range(experts)] if name == "weights" else next(numbers)
            for name in self.parameters
        }

    def _merger(self, rule: Merge, models: Models) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Values → merged tensors; the experts are read once, and weighted sums need no second merge."""
        linear = isinstance(rule, TaskArithmetic) and set(self.parameters) <= {"weights", "scale"} and not rule.post
        if not linear:
            return lambda values: merge_in_memory(replace(rule, **values), models).tensors
        assert isinstance(rule, TaskArithmetic)
        base = base_of(models)
        if set(self.parameters) == {"scale"}:
            direction = line(rule, models)
            return lambda values: {n: base[n] + values["scale"] * direction[n] for n in base}
        vectors = vectors_of(models, rule.pre)

        def merge(values: dict[str, Any]) -> dict[str, Any]:
            scale, weights = values.get("scale", rule.scale), values["weights"]
            found = {n: t.clone() for n, t in base.items()}
            for weight, expert in zip(weights, vectors, strict=True):
                for name, total in found.items():
                    total.add_(vectors[expert][name], alpha=scale * weight)
            return found

        return merge

    def _score(self, data: TaskData) -> Callable[[dict[str, Any]], float]:
        if self.objective == "metric":
            return lambda tensors: -data.score(data.runs(tensors))
        assert data.labelled is not None
        few = {task: take(group, slice(0, self.shots)) for task, group in data.labelled.items()}

        @torch.no_grad()
        def loss(tensors: dict[str, Any]) -> float:
            total = 0.0
            for task, group in few.items():
                sums, count = 0.0, 0.0
                for part in slices(group, 100):
                    output = data.forward(tensors, part, [task])[task]
                    sums += float(data.tasks[task].loss_sum(output, part.targets[task]))
                    count += float(data.tasks[task].loss_count(part.targets[task]))
                total += sums / max(count, 1.0)
            return total / len(few)

        return loss

    def _minimise(self, value: Callable[[Point], float], space: Point) -> None:
        low, high = space[:, 0], space[:, 1]
        rng = np.random.default_rng(self.seed)
        if self.method == "grid":
            per_axis = max(2, int(self.evaluations ** (1 / len(space)) + 1e-9))
            if per_axis ** len(space) > self.evaluations:
                raise UserError(
                    f"merge.evaluations={self.evaluations} is too few for a grid over {len(space)} parameters",
                    f"{2 ** len(space)} at least, or merge.method=cma",
                )
            axes = [np.linspace(a, b, per_axis) for a, b in space]
            for point in itertools.product(*axes):
                value(np.array(point))
        elif self.method == "random":
            for _ in range(self.evaluations):
                value(rng.uniform(low, high))
        elif self.method == "cma":
            self._cma(value, low, high)
        else:
            self._bayes(value, low, high)

    def _cma(self, value: Callable[[Point], float], low: Point, high: Point) -> None:
        import cma

        first = np.zeros(len(low)) if self.start == "zero" else np.full(len(low), 0.5)
        if self.start == "zero":
            first = np.clip((0.0 - low) / (high - low), 0.0, 1.0)
        options = {"bounds": [0.0, 1.0], "seed": self.seed + 1, "verbose": -9, "maxfevals": self.evaluations}
        if len(low) == 1:  # CMA-ES needs two dimensions: the second does nothing
            first = np.array([first[0], 0.5])
        search = cma.CMAEvolutionStrategy(first, self.sigma, options)
        left = self.evaluations
        value(low + first[: len(low)] * (high - low))
        left -= 1
        while left > 0:
            points = search.ask()
            values = [value(low + np.asarray(p)[: len(low)] * (high - low)) for p in points[:left]]
            left -= len(values)
            if len(values) < len(points):
                break
            search.tell(points, values)

    def _bayes(self, value: Callable[[Point], float], low: Point, high: Point) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "merge.method=bayes needs the package optuna", "pip install optuna, or merge.method=cma"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))

        def trial(t: Any) -> float:
            return value(
                np.array([t.suggest_float(str(i), a, b) for i, (a, b) in enumerate(zip(low, high, strict=True))])
            )

        study.optimize(trial, n_trials=self.evaluations)
