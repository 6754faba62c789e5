"""Scale-invariant weighting: the sum of log-losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from runner.tasks.base import Task
from runner.weighting.base import LossWeighting
from runner.weighting.checks import require_positive


class ScaleInvariant(LossWeighting):
    """total = Σ_k log L_k, so w_k = 1/L_k: multiplying a loss by a constant changes no gradient.

    The baseline "SI" of Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022. Its weights
    grow as the losses fall: the learning rate means something else than under equal weighting.
    """

    log_losses: ClassVar[bool] = False  # needs positive losses
    linear: ClassVar[bool] = False  # the weights depend on this step's losses

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__(tasks)

    def combine(self, losses: Tensor, present: Tensor) -> Tensor:
        return losses.double().log().sum()

    def end_step(self, losses: Tensor, present: Tensor) -> None:
        require_positive("si", self.task_names, losses, present)
