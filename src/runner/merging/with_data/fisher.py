"""Fisher merging: every weight counts by how certain its expert is of it (Matena and Raffel 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData, slices, take
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of, generator


@dataclass(kw_only=True)
class Fisher(DataMerge):
    """θ = Σ_t w_t F_t θ_t / Σ_t w_t F_t, F_t the diagonal of expert t's Fisher information (equation 3).

    F is the mean over examples of the squared gradient of log p(y|x): of each example by itself, not of a batch, whose
    cross terms would depend on its size. Where no expert has any, weights are averaged.

    Attributes:
        labels: y is "sampled" from the prediction, "expected" over all classes (as many backward passes), or "true".
        examples: per task, of those that may be seen.
        floor: added to every F, relative to the mean F of all experts; 0 trusts tiny values.
        seed: of the sampled labels.
    """

    labels: Literal["sampled", "expected", "true"] = "sampled"
    examples: PositiveInt = 256
    floor: PositiveFloat = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels == "true":
            self.needs = "labelled"  # type: ignore[misc]

    def fit(self, models: Models, data: TaskData) -> Merged:
        experts = experts_of(models)
        fishers = {task: self.diagonal(tensors, data, task) for task, tensors in experts.items()}
        weights = self.weights_at("", len(experts))
        if self.weights is None:
            weights = [1.0] * len(experts)
        return Merged(fisher_average(experts, fishers, weights, self.floor))

    def diagonal(self, tensors: dict[str, Tensor], data: TaskData, task: str) -> dict[str, Tensor]:
        """The diagonal Fisher information of one expert."""
        draw = generator(self.seed)
        leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        total = {name: torch.zeros_like(t) for name, t in tensors.items()}
        source = (data.labelled or {}) if self.labels == "true" else data.unlabelled
        group = take(source[task], slice(0, self.examples))
        for example in slices(group, 1):
            output = data.forward(leaves, example, [task])[task]
            for weight, log_p in self._terms(output, example, data, task, draw):
                grads = torch.autograd.grad(log_p, list(leaves.values()), retain_graph=True, allow_unused=True)
                for name, grad in zip(leaves, grads, strict=True):
                    if grad is not None:
                        total[name].addcmul_(grad, grad, value=weight)
        return {name: t / len(group) for name, t in total.items()}

    def _terms(self, output, example, data, task, draw):  # type: ignore[no-untyped-def]  # noqa: ANN001
        """(weight, log p(y|x)) of the labels that count for one example."""
        if self.labels == "true":
            yield 1.0, -data.tasks[task].loss_sum(output, example.targets[task])
            return
        if output.dim() != 2:
            raise UserError(
                f"merge.labels={self.labels} needs a class per example, task '{task}' predicts {tuple(output.shape)}",
                "set merge.labels=true",
            )
        if output.shape[1] == 1:
            output = torch.cat([torch.zeros_like(output), output], 1)
        log_p_C = output[0].float().log_softmax(0)
        p_C = log_p_C.detach().exp()
        if self.labels == "sampled":
            yield 1.0, log_p_C[int(torch.multinomial(p_C.cpu(), 1, generator=draw))]
        else:
            for c, p in enumerate(p_C.tolist()):
                yield p, log_p_C[c]


def fisher_average(
    experts: dict[str, dict[str, Tensor]],
    fishers: dict[str, dict[str, Tensor]],
    weights: list[float],
    floor: float,
) -> dict[str, Tensor]:
    """Σ w F θ / Σ w F with a floor under F; equal Fishers give the weighted average."""
    sizes = sum(t.numel() for t in next(iter(fishers.values())).values()) * len(fishers)
    mean = sum(float(t.double().sum()) for f in fishers.values() for t in f.values()) / sizes
    least = floor * mean if mean > 0 else 1.0
    merged = {}
    for name in next(iter(experts.values())):
        top, bottom = 0.0, 0.0
        for weight, expert in zip(weights, experts, strict=True):
            f = weight * (fishers[expert][name] + least)
            top, bottom = top + f * experts[expert][name], bottom + f
        merged[name] = top / bottom
    return merged  # type: ignore[return-value]
