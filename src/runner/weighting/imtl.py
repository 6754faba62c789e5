"""IMTL: impartial gradients (IMTL-G) of losses with learned scales (IMTL-L), Liu et al. 2021."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.tasks.base import Task
from runner.weighting.base import GradientWeighting
from runner.weighting.imtl_g import impartial
from runner.weighting.step import to_host


class IMTL(GradientWeighting):
    """IMTL-G on the gradients of e^{s_k} L_k, with s_k learned by Σ_k (e^{s_k} L_k − s_k).

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, algorithm 1: the shared parameters follow the
    impartial combination of the scaled losses' gradients, the task-specific ones their scaled loss e^{s_k} L_k.
    Since projections on unit gradients do not depend on s, it changes the shared gradient by its common scale and
    through Σα = 1 alone.

    Args:
        lr: learning rate of s; None takes the model's.
        init: initial s.
        heads: "unweighted" as in the paper: e^{s_k}; "weighted" puts the coefficient of the shared parameters on them.
        scale: "paper" is coefficients that sum to 1 before the learned scales.
        every, mode, shared: see `GradientWeighting`.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        lr: PositiveFloat | None = None,
        init: float = 0.0,
        heads: Literal["weighted", "unweighted"] = "unweighted",
        scale: Literal["paper", "one", "tasks"] = "paper",
        every: PositiveInt = 1,
        mode: Literal["parameters", "gram", "representation"] = "parameters",
        shared: list[str] | None = None,
    ) -> None:
        super().__init__(tasks, heads, scale, every, mode, shared)
        self.lr = lr
        self.log_scale = nn.Parameter(torch.full((len(tasks),), float(init)))

    def solve(self, gram: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        factors = to_host(self.log_scale.detach())[present].to(gram).exp()
        self.log_scale.grad = torch.zeros_like(self.log_scale)
        self.log_scale.grad[present] = (factors * losses.to(gram) - 1).to(self.log_scale)
        self._factors = factors
        return impartial(gram * factors[:, None] * factors) * factors

    def head_coefficients(self, coefficients: Tensor, gram: Tensor, losses: Tensor) -> Tensor:
        return coefficients if self.heads == "weighted" else self._factors

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": [self.log_scale], "weight_decay": 0.0}
        return [group | ({} if self.lr is None else {"lr": self.lr})]
