"""All experts side by side, their predictions averaged: the upper end of what storage buys without a router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData
from runner.merging.modules import Bank, MergedModule, Shapes, empty, frame_of
from runner.merging.sources import Models
from runner.merging.with_data.common import experts_of
from runner.types import Group


class EnsembleModule(MergedModule):
    """Every expert's body under the task's own head; predictions averaged.

    Attributes:
        average: "logits": raw predictions; "probabilities": after softmax, given back as logarithms.
    """

    outside: ClassVar[bool] = True

    def __init__(self, model: nn.Module, experts: dict[str, dict[str, Tensor]], average: str) -> None:
        super().__init__()
        self.frame, self.average = frame_of(model), average
        self.experts = nn.ModuleDict({name: Bank(tensors) for name, tensors in experts.items()})

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        outputs = [self.run(dict(bank.items()), group, tasks) for bank in self.experts.values()]  # type: ignore[operator]
        return {task: self._mean([o[task] for o in outputs]) for task in tasks}

    def _mean(self, outputs: list[Tensor]) -> Tensor:
        if self.average == "logits" or outputs[0].shape[1] == 1:
            return torch.stack(outputs).mean(0)
        log_p = torch.stack([o.float().log_softmax(1) for o in outputs])
        return log_p.logsumexp(0) - torch.tensor(float(len(outputs))).log()

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Any, shapes: Shapes) -> MergedModule:
        assert isinstance(strategy, OutputEnsemble)
        return cls(model, {name: empty(tensors) for name, tensors in shapes.items()}, strategy.average)


@dataclass(kw_only=True)
class OutputEnsemble(DataMerge):
    """Keeps all experts and averages what they predict; T times the storage and the time.

    Attributes:
        average: of "logits" or of "probabilities".
    """

    returns: ClassVar[Any] = "ensemble"
    base_use: ClassVar[Any] = "unused"
    module_type: ClassVar[type[MergedModule]] = EnsembleModule

    average: Literal["logits", "probabilities"] = "probabilities"

    def fit(self, models: Models, data: TaskData) -> Merged:
        return Merged(module=EnsembleModule(data.model, experts_of(models), self.average))
