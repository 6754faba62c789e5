"""SVD-based task reweighting: tasks count by how much of their signal lies in the directions that all tasks share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.config.kinds import PositiveInt
from runner.errors import RunFailed
from runner.mixtures.base import Dataset, Example
from runner.mixtures.stream import eval_batches
from runner.randomness import forked_rng
from runner.tasks.base import Task
from runner.training.forward import Forward
from runner.training.wrappers.base import Surroundings, Wrapper
from runner.training.wrappers.features import by_position, only_backbone
from runner.types import MISSING_INT, Batch, Features, Group
from runner.weighting.base import Weighting
from runner.weighting.step import StepReport

SMALLEST = 1e-6
"""Of a factor: a task whose loss were multiplied by 0 would have no loss to show."""


@dataclass(frozen=True)
class Scaled(Forward):
    """Losses times the wrapper's factors."""

    wrapper: SVDReweight | None = None

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        assert self.wrapper is not None
        factors = dict(zip(self.wrapper.task_names, self.wrapper.alpha.float(), strict=True))
        return {name: loss * factors[name] for name, loss in super().loss_sums(batch).items()}


class SVDReweight(Wrapper):
    """Loss k is multiplied by α_k, found once before training (Wu, Zhang and Ré 2020, algorithm 2).

        θ_k = X_kᵀ y_k        U_r: the first r left singular vectors of (θ_1 … θ_K)        α_k = ‖θ_kᵀ U_r‖

    X_k are the features that the untrained heads would read of training examples (the coarsest level of the pyramid at
    every position, the pooled vector, or every token), by the backbone as training starts from it; y_k their labels, a
    column per class or number. Both are centred, and θ_k is divided by the number of labels. The weighting then sees
    α_k L_k; the log shows the tasks' own losses, and coefficients that include α.

    Args:
        rank: r; null takes half the number of tasks, rounded up.
        examples: per data set, evenly spread over it; null takes all.
        center: whether means are taken off first; the paper's formula does not.
        scale: whether α is scaled to sum to the number of tasks, as equal weights do, or left as it is.
    """

    alpha: Tensor

    def __init__(
        self,
        weighting: Weighting,
        *,
        rank: PositiveInt | None = None,
        examples: PositiveInt | None = 1024,
        center: bool = True,
        scale: Literal["sum", "none"] = "sum",
    ) -> None:
        super().__init__(weighting)
        self.rank, self.examples, self.center, self.scale = rank, examples, center, scale
        self.register_buffer("alpha", torch.ones(len(self.task_names), dtype=torch.float64))

    def losses(self, forward: Forward) -> Forward:
        return Scaled(**{field.name: getattr(forward, field.name) for field in fields(forward)}, wrapper=self)

    def attach(self, around: Surroundings) -> None:
        super().attach(around)
        self._backbone = only_backbone(around.model, "svd_reweight")

    def start(self) -> None:
        self.alpha.copy_(self.solve(self._correlations()))

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        report = super().gradients(micro_batches, counts, step, per_epoch)
        alpha = self.alpha.float().cpu()
        report.losses, report.weights = report.losses / alpha, report.weights * alpha
        return report

    def solve(self, thetas: Sequence[Tensor]) -> Tensor:
        """α (K,) float64 from θ_k (C, columns of task k).

        Raises:
            RunFailed: no task has any.
        """
        rank = self.rank or -(-len(thetas) // 2)
        left_CR = torch.linalg.svd(torch.cat(list(thetas), dim=1), full_matrices=False)[0][:, :rank]
        alpha = torch.stack([(theta.T @ left_CR).norm() for theta in thetas])
        if not alpha.sum() > 0:
            raise RunFailed(
                "wrapper=svd_reweight: no label varies with the features, so there is nothing to weigh tasks by",
                "use more examples (wrapper.examples), or wrapper=none",
            )
        if self.scale == "sum":
            alpha = alpha * (len(thetas) / alpha.sum())
        return alpha.clamp_min(SMALLEST)

    # ---- from the training data -------------------------------------------------------------------------------------

    def _correlations(self) -> list[Tensor]:
        """θ_k (C, columns) of every task, float64, from all processes."""
        around = self.around
        tasks = around.forward.tasks
        sums: dict[str, list[Tensor]] = {}  # Σ x yᵀ, Σ x, Σ y, n
        modes = {module: module.training for module in around.model.modules()}
        around.model.eval()
        with torch.no_grad(), forked_rng():
            for group in self._groups():
                moved = group.to(around.engine.device)
                with around.forward.autocast():
                    features = self._backbone(moved.inputs)
                for name, target in moved.targets.items():
                    x_NC, y_NQ = rows(tasks[name], features, target)
                    found = [x_NC.T @ y_NQ, x_NC.sum(0), y_NQ.sum(0), y_NQ.new_tensor(float(len(y_NQ)))]
                    sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
        for module, mode in modes.items():
            module.training = mode
        missing = [name for name in tasks if name not in sums]
        if missing and around.world_size == 1:
            raise RunFailed(
                f"wrapper=svd_reweight: no label of task '{', '.join(missing)}' in {self.examples} training examples",
                "raise wrapper.examples, or set it to null for all",
            )
        return [self._theta(sums.get(name)) for name in tasks]

    def _theta(self, sums: list[Tensor] | None) -> Tensor:
        if sums is None:
            raise RunFailed(
                "wrapper=svd_reweight: a process found no label of a task", "raise wrapper.examples, or set it to null"
            )
        xy_CQ, x_C, y_Q, n = (self.around.reduce(part) for part in sums)
        centred = xy_CQ - torch.outer(x_C, y_Q) / n if self.center else xy_CQ
        return centred / n

    def _groups(self) -> itertools.chain[Group]:
        around = self.around
        return itertools.chain.from_iterable(
            eval_batches(
                Spread(dataset, self.examples or len(dataset)),
                batch_size=around.batch_size,
                rank=around.rank,
                world_size=around.world_size,
                pad_token_id=around.inputs.pad_token_id,
            )
            for dataset in around.train_sets.values()
        )


class Spread:
    """`count` examples of a data set, evenly spread over it."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self.count = dataset, min(count, len(dataset))
        self.name, self.tasks = dataset.name, dataset.tasks

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """As in the whole data set."""
        return self.dataset.example(index * len(self.dataset) // self.count, rng)


def rows(task: Task, features: Features, target: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and labels (N, Q) of the labelled positions, float64.

    Args:
        task: says which features it reads, and how many classes there are.
        target: of the task, see `runner.mixtures.base.Example`; dense ones are read at the centres of the cells.
    """
    if task.kind == "dense":
        assert features.pyramid is not None
        z = features.pyramid[-1]
        maps = (target if target.ndim == 4 else target.unsqueeze(1)).double()
        y = by_position(F.interpolate(maps, size=z.shape[2:], mode="nearest-exact"))
    elif task.kind == "token":
        assert features.tokens is not None
        z, y = features.tokens, target.double().unsqueeze(1)
    else:
        assert features.pooled is not None
        z, y = features.pooled, target.double().reshape(len(target), -1, 1)
    x_NC = by_position(z).transpose(1, 2).reshape(-1, by_position(z).shape[1]).double()
    y_NQ = y.transpose(1, 2).reshape(len(x_NC), -1)
    if target.dtype.is_floating_point:
        there = ~y_NQ.isnan().any(1)
        return x_NC[there], y_NQ[there]
    classes = y_NQ[:, 0].long()
    there = classes != MISSING_INT
    return x_NC[there], F.one_hot(classes[there], task.out_channels).double()
