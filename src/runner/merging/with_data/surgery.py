"""Representation surgery: per task, a small correction of the merged features (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import Problem, UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData
from runner.merging.modules import MergedModule, Shapes, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of, generator, inner_rule, merged_by
from runner.types import Features, Group


class Correction(nn.Module):
    """Z → Z − W_up ReLU(W_down Z) before a head (equation 5)."""

    def __init__(self, head: nn.Module, dim: int, rank: int) -> None:
        super().__init__()
        self.head, self.down, self.up = head, nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)

    def forward(self, features: Features) -> Tensor:
        if features.pooled is not None:
            return self.head(replace(features, pooled=self.correct(features.pooled)))
        return self.head(replace(features, tokens=self.correct(features.tokens)))

    def correct(self, z: Tensor) -> Tensor:
        """The corrected features."""
        return z - self.up(torch.relu(self.down(z)))


class SurgeryModule(MergedModule):
    """A model whose heads read corrected features."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__()
        self.frame = frame_of(model)
        heads: Any = self.frame.heads
        dim = self.frame.all_backbones()[0].spec.dim  # type: ignore[operator]
        for task in heads:
            heads[task] = Correction(heads[task], dim, rank).to(next(model.parameters()).device)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self.frame(group, tasks)

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, Surgery)
        return cls(model, strategy.rank)


@dataclass(kw_only=True)
class Surgery(DataMerge):
    """Any merge, then per task an L1 regression from merged to expert's features on unlabelled inputs.

    Yang, Shen, Wang, Guo, Chen, Wang, Tao, "Representation Surgery for Multi-Task Model Merging", 2024: equation 6.

    Attributes:
        rule: the merge beneath, a config with a `_target_`; null is task arithmetic.
        rank: of the correction.
        lr, steps, batch_size: of Adam, per task.
        seed: of first weights and batches.
    """

    returns: ClassVar[Any] = "module"
    module_type: ClassVar[type[MergedModule]] = SurgeryModule

    rule: dict[str, Any] | None = None
    rank: PositiveInt = 16
    lr: PositiveFloat = 1e-3
    steps: PositiveInt = 1000
    batch_size: PositiveInt = 64
    seed: int = 0

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        return [*super().check(experts, has_base), *inner_rule(self.rule).check(experts, has_base)]

    def fit(self, models: Models, data: TaskData) -> Merged:
        merged = merged_by(inner_rule(self.rule), models, data)
        module = SurgeryModule(data.model, self.rank)
        own = module.frame.state_dict()
        for name, tensor in merged.items():
            own[name].copy_(tensor)
        bias = {}
        for number, (task, expert) in enumerate(experts_of(models).items()):
            if data.tasks[task].kind == "dense":
                raise UserError(f"merge=surgery corrects feature vectors, task '{task}' reads a pyramid")
            with torch.no_grad():
                pairs = [
                    (data.features(merged, g, task).flatten(0, -2), data.features(expert, g, task).flatten(0, -2))
                    for g in data.passes(task, 200)
                ]
            before, after = fit_correction(
                module.frame.heads[task],  # type: ignore[index]
                torch.cat([a for a, _ in pairs]),
                torch.cat([b for _, b in pairs]),
                lr=self.lr,
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed + number,
            )
            bias[task] = {"before": round(before, 5), "after": round(after, 5)}
        return Merged(module=module, report={"representation_bias": bias})


def fit_correction(
    correction: Correction, z_ND: Tensor, target_ND: Tensor, *, lr: float, steps: int, batch_size: int, seed: int
) -> tuple[float, float]:
    """Train a correction; returns the mean absolute distance of the features before and after."""
    draw = generator(seed)
    with torch.no_grad():
        rank, dim = correction.down.weight.shape
        correction.down.weight.copy_(torch.randn(rank, dim, generator=draw) / dim**0.5)
        correction.up.weight.zero_()  # the merged model as it is
    weights = [correction.down.weight, correction.up.weight]
    adam = torch.optim.Adam(weights, lr=lr)
    with torch.no_grad():
        before = float((z_ND - target_ND).abs().mean())
    for _ in range(steps):
        rows = torch.randint(len(z_ND), (min(batch_size, len(z_ND)),), generator=draw).to(z_ND.device)
        loss = (correction.correct(z_ND[rows]) - target_ND[rows]).abs().mean()
        adam.zero_grad()
        loss.backward(inputs=weights)
        adam.step()
    with torch.no_grad():
        return before, float((correction.correct(z_ND) - target_ND).abs().mean())
