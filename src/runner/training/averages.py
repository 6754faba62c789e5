"""Means of what the steps since the last row of the log reported."""

from __future__ import annotations

import math
from typing import Any

import torch

from runner.weighting.step import StepReport


class Averages:
    """Running sums per task and per pair of tasks; part of the checkpoint, so that a resumed run writes the same rows.

    Args:
        tasks: names, in the order of every loss vector.
    """

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        self.reset()

    def reset(self) -> None:
        """Start a new row."""
        k = len(self.tasks)
        self.sums = torch.zeros(3, k, dtype=torch.float64)  # losses, weights, gradient norms
        self.counts = torch.zeros(3, k, dtype=torch.float64)  # steps that had them
        self.pairs = torch.zeros(3, k, k, dtype=torch.float64)  # cosines, conflicts, steps that know the cosine
        self.grad_norm, self.steps = 0.0, 0
        self.solver_s, self.step_s = 0.0, 0.0

    def add(self, report: StepReport, grad_norm: float, step_s: float) -> None:
        """Add one step; tasks that were absent from it do not count.

        Args:
            report: what the engine says of the step.
            grad_norm: norm of the applied gradient.
            step_s: seconds that the step took so far, of which `report.solver_s` is a part.
        """
        values = torch.stack([report.losses, report.weights, report.grad_norms]).double()
        self.sums += values.nan_to_num()
        self.counts += ~values.isnan()
        if len(self.tasks) > 1:
            cosines = report.cosines.double()
            self.pairs += torch.stack([cosines.nan_to_num(), cosines < 0, ~cosines.isnan()])
        self.solver_s += report.solver_s
        self.step_s += step_s
        if math.isfinite(grad_norm):  # not so in a step that fp16 scaling skips
            self.grad_norm += grad_norm
            self.steps += 1

    def means(self) -> dict[str, dict[str, float]]:
        """Task → {"loss", "weight", "grad_norm"} over the steps that had them; tasks without any are left out."""
        found: dict[str, dict[str, float]] = {}
        for k, name in enumerate(self.tasks):
            if self.counts[0, k] > 0:
                loss, weight = (self.sums[:2, k] / self.counts[0, k]).tolist()
                found[name] = {"loss": loss, "weight": weight}
                if self.counts[2, k] > 0:
                    found[name]["grad_norm"] = float(self.sums[2, k] / self.counts[2, k])
        return found

    def between(self) -> dict[str, dict[str, float]]:
        """Pair "a~b" → {"cosine": mean, "conflict": share of steps in which it was negative}, where it is known."""
        found = {}
        for a, first in enumerate(self.tasks):
            for b, second in enumerate(self.tasks[a + 1 :], start=a + 1):
                cosine, conflicts, steps = self.pairs[:, a, b].tolist()
                if steps > 0:
                    found[f"{first}~{second}"] = {"cosine": cosine / steps, "conflict": conflicts / steps}
        return found

    def common(self) -> dict[str, float]:
        """What is not of one task."""
        found = {"grad_norm": self.grad_norm / self.steps} if self.steps else {}
        if self.counts[2].any():
            found["solver_share"] = self.solver_s / self.step_s
        return found

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; floats survive JSON bit for bit."""
        return {
            "sums": self.sums.tolist(),
            "counts": self.counts.tolist(),
            "pairs": self.pairs.tolist(),
            "grad_norm": self.grad_norm,
            "steps": self.steps,
            "seconds": [self.solver_s, self.step_s],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.counts = torch.tensor(state["counts"], dtype=torch.float64)
        self.pairs = torch.tensor(state["pairs"], dtype=torch.float64)
        self.grad_norm, self.steps = state["grad_norm"], state["steps"]
        self.solver_s, self.step_s = state["seconds"]
