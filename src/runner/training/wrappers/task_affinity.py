"""Affinities of tasks from the cosines of their gradients, for `architecture=vtagml` (Bhattacharjee et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from runner.config.kinds import Fraction, PositiveInt
from runner.training.wrappers.base import Wrapper
from runner.types import Batch
from runner.weighting.base import Weighting
from runner.weighting.step import StepReport


class TaskAffinity(Wrapper):
    """G_ts ← m G_ts + (1 - m) cos(∇L_t, ∇L_s), over the parameters that both tasks share, every few steps.

    G is the buffer `affinity` of `architecture=vtagml`, whose attention among tasks it biases (arXiv 2308.12372,
    section 3.1); it is saved with the model. The gradients are those of the whole step, and the step itself is the
    weighting's alone. Pairs of which one has no label in a step keep their value. How often affinities are taken and
    how they are averaged, `every` and `momentum`, is ours.

    Args:
        every: steps between two measurements.
        momentum: m.
    """

    looks_inside: ClassVar[bool] = True
    architecture: ClassVar[str | None] = "vtagml"

    def __init__(self, weighting: Weighting, *, every: PositiveInt = 10, momentum: Fraction = 0.9) -> None:
        super().__init__(weighting)
        self.every, self.momentum = every, momentum

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        if step % self.every or len(self.task_names) < 2:
            return super().gradients(micro_batches, counts, step, per_epoch)
        around, engine = self.around, self.around.engine
        engine.begin(counts, step, per_epoch)
        shared = engine.shared
        grads_KP = torch.zeros(len(self.task_names), sum(p.numel() for p in shared), device=engine.device)
        for batch in micro_batches:
            sums = around.forward.loss_sums(batch)
            for k in engine.present if shared else ():
                loss = sums.get(engine.tasks[k])
                if loss is None or not loss.requires_grad:
                    continue
                part = loss.float() * (engine.scale / engine.counts[k].item())
                found = torch.autograd.grad(part, shared, retain_graph=True, allow_unused=True)
                grads_KP[k] += torch.cat(
                    [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(shared, found, strict=True)]
                )
            engine.backward(sums)
        report = engine.finish()
        self._update(around.reduce(grads_KP), report)
        return report

    def _update(self, grads_KP: Tensor, report: StepReport) -> None:
        length_K = grads_KP.norm(dim=1)
        known_K = (length_K > 0) & length_K.isfinite()
        unit_KP = torch.where(known_K[:, None], grads_KP / length_K.clamp_min(1e-30)[:, None], 0.0)
        cosines_KK = (unit_KP @ unit_KP.T).fill_diagonal_(1.0)  # whatever rounding says
        both_KK = known_K[:, None] & known_K
        affinity_KK: Tensor = self.around.model.affinity  # type: ignore[assignment]
        moved_KK = self.momentum * affinity_KK + (1 - self.momentum) * cosines_KK
        affinity_KK.copy_(torch.where(both_KK, moved_KK, affinity_KK))
        if report.cosines.isnan().all():  # the weighting has not looked itself
            report.cosines = torch.where(both_KK, cosines_KK, float("nan")).cpu()
