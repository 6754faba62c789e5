"""Coefficients of task vectors learned by gradient: one per task, or one per task and tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData
from runner.merging.sources import Models
from runner.merging.with_data.common import Vectors, base_of, entropy, generator, vectors_of
from runner.types import Group


class Mixed:
    """θ = θ₀ + Σ_t λ_t τ_t with λ per task (T, 1) or per task and tensor (T, N); differentiable in λ."""

    def __init__(self, base: Mapping[str, Tensor], vectors: Vectors) -> None:
        self.base = dict(base)
        self.stacked = {name: torch.stack([v[name] for v in vectors.values()]) for name in base}

    def __call__(self, coefficients_TN: Tensor) -> dict[str, Tensor]:
        found = {}
        for n, (name, tau_T) in enumerate(self.stacked.items()):
            lam_T = coefficients_TN[:, n if coefficients_TN.shape[1] > 1 else 0]
            found[name] = self.base[name] + torch.tensordot(lam_T, tau_T, dims=1)
        return found


def best_scale(mixed: Mixed, data: TaskData, experts: int) -> float:
    """The coefficient, the same for all, with the best validation score: where learning may start."""
    like = next(iter(mixed.base.values()))
    grid = [0.5 / experts, 1 / experts, 1.5 / experts, 2 / experts, 0.3]
    with torch.no_grad():
        scores = [data.score(data.runs(mixed(torch.full((experts, 1), s, device=like.device)))) for s in grid]
    return grid[scores.index(max(scores))]


@dataclass(kw_only=True)
class LearnedCoefficients(DataMerge):
    """Base of strategies that learn coefficients with Adam on batches of all tasks.

    Attributes:
        level: "task": one number per expert; "tensor": one per expert and tensor, "layer-wise" in the papers.
        init: of all coefficients; None takes the best of a few on validation data.
        lr, steps: of Adam, whose momenta are 0.9 and 0.999.
        batch_size: examples per task and step.
        clamp: keep coefficients in [0, 1].
        keep: "last", or the "best" on validation data among 10 points on the way.
        seed: of the batches.
    """

    level: Literal["task", "tensor"] = "tensor"
    init: float | None = None
    lr: PositiveFloat = 1e-3
    steps: PositiveInt = 500
    batch_size: PositiveInt = 16
    clamp: bool = False
    keep: Literal["last", "best"] = "last"
    seed: int = 0

    def objective(self, output: Tensor, group: Group, data: TaskData, task: str) -> Tensor:
        """What is minimised, for one batch of one task."""
        raise NotImplementedError

    def fit(self, models: Models, data: TaskData) -> Merged:
        base, vectors = base_of(models), vectors_of(models, self.pre)
        mixed, experts = Mixed(base, vectors), list(vectors)
        start = best_scale(mixed, data, len(experts)) if self.init is None else self.init
        columns = len(base) if self.level == "tensor" else 1
        device = next(iter(base.values())).device
        lam_TN = torch.full((len(experts), columns), float(start), device=device, requires_grad=True)
        adam = torch.optim.Adam([lam_TN], lr=self.lr)
        draw = generator(self.seed)
        labelled = self.needs == "labelled"
        streams = {task: data.batches(task, self.batch_size, draw, labelled) for task in data.tasks}
        curve, best = [], (-float("inf"), lam_TN.detach().clone())
        every = max(1, self.steps // 10)
        for step in range(self.steps + 1):
            data.check_stop()
            if step % every == 0 or step == self.steps:
                with torch.no_grad():
                    score = data.score(data.runs(mixed(lam_TN)))
                curve.append({"step": step, "normalised": score})
                if score > best[0]:
                    best = (score, lam_TN.detach().clone())
            if step == self.steps:
                break
            adam.zero_grad()
            tensors = mixed(lam_TN)
            loss = torch.zeros((), device=device)
            for task, stream in streams.items():
                group = next(stream)
                loss = loss + self.objective(data.forward(tensors, group, [task])[task], group, data, task)
            loss.backward()
            adam.step()
            if self.clamp:
                with torch.no_grad():
                    lam_TN.clamp_(0, 1)
        chosen = best[1] if self.keep == "best" else lam_TN.detach()
        if curve[-1]["normalised"] < 0.9 * curve[0]["normalised"]:
            lost = 1 - curve[-1]["normalised"] / curve[0]["normalised"]
            data.say(
                f"{type(self).__name__} has lost {lost:.0%} of its start on "
                "validation data: lower merge.lr or merge.steps, or set merge.keep=best"
            )
        report: dict[str, Any] = {
            "init": start,
            "coefficients": {e: round(float(row.mean()), 5) for e, row in zip(experts, chosen, strict=True)},
            "learning": curve,
        }
        return Merged({n: t.detach() for n, t in mixed(chosen).items()}, report=report)


def entropy_of(output: Tensor) -> Tensor:
    """Mean entropy of predictions (B, C, …) over examples and positions."""
    return entropy(output if output.dim() == 2 else output.movedim(1, -1).flatten(0, -2))


Objective = Callable[[Tensor, Group], Tensor]
