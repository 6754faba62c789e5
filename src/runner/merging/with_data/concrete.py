"""Concrete subspace learning: a mask over weights, shared by all task vectors, learned on unlabelled inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData
from runner.merging.sources import Models
from runner.merging.with_data.coefficients import Mixed, best_scale, entropy_of
from runner.merging.with_data.common import base_of, generator, vectors_of


@dataclass(kw_only=True)
class Concrete(DataMerge):
    """θ = θ₀ + λ/mean(m) · m ⊙ Σ_t τ_t, m ∈ [0, 1] per weight, by the entropy of predictions.

    Tang, Shen, Luo, Ding, Hu, Du, Wen, Tao, "Concrete Subspace Learning based Interference Elimination for Multi-task
    Model Fusion", 2023: m = σ((logits + log u − log(1 − u)) / temperature) while learning (equation 5), m = σ(logits)
    afterwards. Dividing by the mean keeps the size of the update.

    Attributes:
        scale: λ; None takes the best of a few on validation data.
        logits: where all logits start: 0 keeps half.
        temperature: of the relaxation; low is close to a hard mask and noisy to learn.
        lr, steps, batch_size: of Adam; examples per task and step.
        seed: of noise and batches.
    """

    scale: float | None = None
    logits: float = 0.0
    temperature: PositiveFloat = 0.5
    lr: PositiveFloat = 1e-2
    steps: PositiveInt = 300
    batch_size: PositiveInt = 16
    seed: int = 0

    def fit(self, models: Models, data: TaskData) -> Merged:
        base, vectors = base_of(models), vectors_of(models, self.pre)
        scale = best_scale(Mixed(base, vectors), data, len(vectors)) if self.scale is None else self.scale
        total = {name: torch.stack([v[name] for v in vectors.values()]).sum(0) for name in base}
        logits = {name: torch.full_like(t, self.logits).requires_grad_() for name, t in base.items()}
        for name, task in data.tasks.items():
            if task.loss_kind != "classification":
                raise UserError(f"merge=concrete minimises the entropy of predicted classes, task '{name}' has none")
        draw = generator(self.seed)
        streams = {task: data.batches(task, self.batch_size, draw) for task in data.tasks}
        adam = torch.optim.Adam(list(logits.values()), lr=self.lr)
        for _ in range(self.steps):
            data.check_stop()
            masks = {name: self._sample(z, draw) for name, z in logits.items()}
            tensors = masked(base, total, masks, scale)
            loss = torch.zeros((), device=data.device)
            for task, stream in streams.items():
                loss = loss + entropy_of(data.forward(tensors, next(stream), [task])[task])
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            masks = {name: torch.sigmoid(z) for name, z in logits.items()}
            share = sum(float(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
            tensors = masked(base, total, masks, scale)
        return Merged(tensors, report={"scale": scale, "kept": round(share, 4)})

    def _sample(self, logits: Tensor, draw: torch.Generator) -> Tensor:
        u = torch.rand(logits.shape, generator=draw).clamp(1e-6, 1 - 1e-6).to(logits.device)
        return torch.sigmoid((logits + u.log() - (1 - u).log()) / self.temperature)


def masked(
    base: dict[str, Tensor], total: dict[str, Tensor], masks: dict[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """θ₀ + scale / mean(m) · m ⊙ total, the mean over all weights."""
    kept = sum(m.sum() for m in masks.values()) / sum(m.numel() for m in masks.values())  # type: ignore[union-attr]
    return {name: base[name] + (scale / kept) * masks[name] * total[name] for name in base}
