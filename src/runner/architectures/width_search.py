"""From a compute budget and a task preference to widths (Aich et al. 2023, arXiv 2308.11744, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.architectures.slimmable import Slimmable

Results = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Setting:
    """Widths of a sub-network.

    Attributes:
        encoder: index of its width; 0 is the full one.
        decoders: task → index.
    """

    encoder: int
    decoders: Mapping[str, int]


@dataclass(frozen=True)
class Search:
    """The paper's rule: more compute for the preferred task's decoder, and the encoder that serves all tasks best.

    For every encoder width, decoders are widened one after the other, the preferred first, each as far as the budget
    allows with the others at their narrowest. Of these candidates, at most one per encoder width, the one with the
    best preference-weighted gain over the full network on the validation split is taken. That candidates are measured
    rather than predicted, and the gain as the score, are ours.

    Attributes:
        budgets: shares of the full network's FLOPs.
        preference: weight of the preferred task; the others share the rest.
    """

    budgets: Sequence[float]
    preference: float

    def table(
        self, model: Slimmable, measure: Callable[[], Results], cost: Callable[[Sequence[str]], int]
    ) -> list[dict[str, Any]]:
        """A row for every budget and preference.

        Args:
            model: is set to every candidate in turn.
            measure: validation results of the model as it is set.
            cost: FLOPs of a forward pass of some tasks as it is set.

        Returns:
            Rows with `budget`, `preferred` (a task, or null for none), `encoder` and `decoders` (widths), `flops`
            (share of the full network's), `validation` (task → headline metric) and `gain` (weighted, relative to the
            full network); with `encoder: null` where even the narrowest network is too large.
        """
        flops = Flops(model, cost)
        measured: dict[tuple[int, ...], Results] = {}

        def results(setting: Setting) -> Results:
            key = (setting.encoder, *(setting.decoders[name] for name in model.tasks))
            if key not in measured:
                model.setting = setting
                measured[key] = measure()
            return measured[key]

        full = model.full()
        preferred: list[str | None] = [None, *(model.tasks if len(model.tasks) > 1 else [])]
        rows = []
        for budget in self.budgets:
            for task in preferred:
                weights = self.weights(list(model.tasks), task)
                candidates = self.candidates(flops, len(model.ratios), budget * flops.total(full), weights)
                scored = [(gain(model.tasks, weights, results(c), results(full)), c) for c in candidates]
                best = max(scored, key=lambda pair: pair[0], default=None)
                rows.append({"budget": budget, "preferred": task} | _row(model, flops, best, results))
        return rows

    def weights(self, tasks: Sequence[str], preferred: str | None) -> dict[str, float]:
        """Task → its weight."""
        if preferred is None or len(tasks) == 1:
            return dict.fromkeys(tasks, 1.0 / len(tasks))
        rest = (1.0 - self.preference) / (len(tasks) - 1)
        return {name: self.preference if name == preferred else rest for name in tasks}

    @staticmethod
    def candidates(flops: Flops, widths: int, limit: float, weights: Mapping[str, float]) -> list[Setting]:
        """One for every encoder width at which the narrowest decoders are within the limit."""
        found = []
        for encoder in range(widths):
            decoders = dict.fromkeys(weights, widths - 1)
            if flops.total(Setting(encoder, decoders)) > limit:
                continue
            for name in sorted(weights, key=lambda task: -weights[task]):
                wider = (Setting(encoder, decoders | {name: index}) for index in range(widths))
                decoders = dict(next(s for s in wider if flops.total(s) <= limit).decoders)
            found.append(Setting(encoder, decoders))
        return found


class Flops:
    """FLOPs of every setting, from those of single decoders: they do not depend on one another."""

    def __init__(self, model: Slimmable, cost: Callable[[Sequence[str]], int]) -> None:
        names, widths = list(model.tasks), range(len(model.ratios))
        self.encoder: list[int] = []
        self.decoder: dict[tuple[str, int, int], int] = {}
        for e in widths:
            alone = {}
            for d in widths:
                model.setting = Setting(e, dict.fromkeys(names, d))
                alone[d] = [cost([name]) for name in names]
            # n encoders less one are counted too often when decoders are measured one by one.
            together = cost(names)
            shared = (sum(alone[widths[-1]]) - together) // (len(names) - 1) if len(names) > 1 else 0
            self.encoder.append(shared)
            for d in widths:
                for name, value in zip(names, alone[d], strict=True):
                    self.decoder[name, e, d] = value - shared

    def total(self, setting: Setting) -> int:
        """Of a forward pass of all tasks."""
        decoders = (self.decoder[name, setting.encoder, d] for name, d in setting.decoders.items())
        return self.encoder[setting.encoder] + sum(decoders)


def gain(tasks: Mapping[str, Any], weights: Mapping[str, float], found: Results, full: Results) -> float:
    """Σ_t w_t · relative gain of the task's headline over the full network, in its better direction; -inf for NaN."""
    total = 0.0
    for name, weight in weights.items():
        metric = tasks[name].headline
        value, zero = found[name][metric], full[name][metric]
        sign = 1.0 if tasks[name].directions.get(metric, "down") == "up" else -1.0
        total += weight * sign * (value - zero) / max(abs(zero), 1e-12)
    return total if math.isfinite(total) else -math.inf


def _row(
    model: Slimmable, flops: Flops, best: tuple[float, Setting] | None, results: Callable[[Setting], Results]
) -> dict[str, Any]:
    if best is None:
        return {"encoder": None, "decoders": None, "flops": None, "validation": None, "gain": None}
    score, setting = best
    found = results(setting)
    shown = {name: {task.headline: found[name][task.headline]} for name, task in model.tasks.items()}
    return {
        "encoder": model.ratios[setting.encoder],
        "decoders": {name: model.ratios[d] for name, d in setting.decoders.items()},
        "flops": round(flops.total(setting) / flops.total(model.full()), 4),
        "validation": {n: {m: v if math.isfinite(v) else None for m, v in row.items()} for n, row in shown.items()},
        "gain": round(score, 6) if math.isfinite(score) else None,
    }
