"""Model tinting: learned coefficients and one trainable layer per task, taught by the experts (SyMerge)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config.kinds import Fraction, PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData
from runner.merging.modules import MergedModule, Shapes, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.coefficients import Mixed, best_scale
from runner.merging.with_data.common import base_of, experts_of, generator, vectors_of
from runner.types import Group


class TintedModule(MergedModule):
    """A merged model with heads of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.frame = frame_of(model)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return self.frame(group, tasks)

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        return cls(model)


@dataclass(kw_only=True)
class Tint(DataMerge):
    """Learns λ per task and tensor, and every task's head, to predict what its expert predicts on unlabelled inputs.

    Of every batch only the examples count where the expert is surest compared with the merged model: there it has
    most to teach, and is least often wrong.

    Attributes:
        lr: of the coefficients. head_lr: of the heads.
        steps, batch_size: of Adam; examples per task and step.
        share: of a batch, by the gap between the expert's confidence and the merged model's.
        init: of the coefficients; None takes the best of a few on validation data.
        seed: of the batches.
    """

    returns: ClassVar[Any] = "module"
    module_type: ClassVar[type[MergedModule]] = TintedModule

    lr: PositiveFloat = 1e-3
    head_lr: PositiveFloat = 1e-3
    steps: PositiveInt = 500
    batch_size: PositiveInt = 32
    share: Fraction = 0.5
    init: float | None = None
    seed: int = 0

    def fit(self, models: Models, data: TaskData) -> Merged:
        mixed, experts = Mixed(base_of(models), vectors_of(models, self.pre)), experts_of(models)
        start = best_scale(mixed, data, len(experts)) if self.init is None else self.init
        lam_TN = torch.full((len(experts), len(mixed.base)), float(start), device=data.device, requires_grad=True)
        module = TintedModule(data.model)
        heads = {
            f"heads.{task}.{name}": p.detach().clone().requires_grad_()
            for task, head in data.model.heads.items()  # type: ignore[union-attr,operator]
            for name, p in head.named_parameters()
        }
        groups: list[dict[str, Any]] = [{"params": [lam_TN], "lr": self.lr}]
        if heads:
            groups.append({"params": list(heads.values()), "lr": self.head_lr})
        adam, draw = torch.optim.Adam(groups), generator(self.seed)
        streams = {task: data.batches(task, self.batch_size, draw) for task in data.tasks}
        for _ in range(self.steps):
            data.check_stop()
            tensors = {**mixed(lam_TN), **heads}
            loss = torch.zeros((), device=data.device)
            for task, stream in streams.items():
                group = next(stream)
                with torch.no_grad():
                    taught_BC = data.forward(experts[task], group, [task])[task]
                if taught_BC.dim() != 2 or taught_BC.shape[1] < 2:
                    raise UserError(
                        f"merge=tint learns from predicted classes, task '{task}' has none", see="runner ls merge"
                    )
                loss = loss + tinted_loss(data.forward(tensors, group, [task])[task], taught_BC, self.share)
            adam.zero_grad()
            loss.backward()
            adam.step()
        own = module.frame.state_dict()
        for name, tensor in {**mixed(lam_TN.detach()), **heads}.items():
            own[name].copy_(tensor.detach())
        means = {e: round(float(row.mean()), 5) for e, row in zip(experts, lam_TN.detach(), strict=True)}
        return Merged(module=module, report={"init": start, "coefficients": means})


def tinted_loss(output_BC: Tensor, expert_BC: Tensor, share: float) -> Tensor:
    """Cross-entropy to the expert's classes, over the `share` of examples with the largest gap in confidence."""
    with torch.no_grad():
        gap_B = expert_BC.softmax(1).amax(1) - output_BC.softmax(1).amax(1)
        rows = gap_B.topk(max(1, round(share * len(gap_B)))).indices
    return F.cross_entropy(output_BC[rows], expert_BC[rows].argmax(1))
