"""aTLAS: coefficients per parameter block from a few labels (Zhang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.merging.data import TaskData
from runner.merging.with_data.coefficients import LearnedCoefficients, entropy_of
from runner.types import Group


@dataclass(kw_only=True)
class Atlas(LearnedCoefficients):
    """θ = θ₀ + Σ_t Λ_t τ_t, Λ_t one number per parameter block, from 0, by the tasks' losses on labelled examples.

    Zhang, Albert, Rodriguez-Opazo, van den Hengel, Abbasnejad, "Knowledge Composition using Task Vectors with Learned
    Anisotropic Scaling", 2024: equation 5. How many labels there are is `merging.adapt_examples`.

    Attributes:
        loss: "supervised" by labels, or the "entropy" of predictions, which reads none.
    """

    needs: ClassVar[Literal["weights", "unlabelled", "labelled"]] = "labelled"

    init: float | None = 0.0
    lr: PositiveFloat = 1e-2
    steps: PositiveInt = 300
    batch_size: PositiveInt = 32
    loss: Literal["supervised", "entropy"] = "supervised"

    def objective(self, output: Tensor, group: Group, data: TaskData, task: str) -> Tensor:
        if self.loss == "entropy":
            return entropy_of(output)
        target = group.targets[task]
        described = data.tasks[task]
        return described.loss_sum(output, target) / described.loss_count(target).clamp_min(1).float()
