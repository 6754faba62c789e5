"""Configuration-invariant knowledge distillation (Aich et al. 2023, arXiv 2308.11744, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor

from runner.config.kinds import NonNegativeFloat
from runner.training.wrappers.added import AddedLoss
from runner.training.wrappers.features import candidates
from runner.types import Batch
from runner.weighting.base import Weighting


class CIKD(AddedLoss):
    """λ Σ_r Σ_l ‖f_l^r - sg(f_l)[:C_r]‖² / ‖sg(f_l)[:C_r]‖²: features of every width match those of the full encoder.

    f_l are the maps of the full encoder of `architecture=slimmable` (no gradient goes there) and f_l^r those of the
    step's sub-networks, whose channels are its first C_r; the mean over sub-networks, levels and examples. Dividing by
    the full features' own size, so that λ means the same at every level, is ours.

    Args:
        weight: λ.
    """

    architecture: ClassVar[str | None] = "slimmable"

    def __init__(self, weighting: Weighting, *, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__(weighting)
        self.weight = weight

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self.around.model.watched() as self._seen:  # type: ignore[operator]
            yield

    def added(self, batch: Batch) -> Tensor | None:
        total: Tensor | None = None
        for whole, *parts in self._seen:
            for part in parts:
                pairs = list(zip(candidates(part), candidates(whole), strict=True))
                for narrow, full in pairs:
                    term = distance(narrow.float(), full.detach().float()).sum() / (len(pairs) * len(parts))
                    total = term if total is None else total + term
        return None if total is None else total * (self.weight / self.total)


def distance(narrow: Tensor, full: Tensor) -> Tensor:
    """(B,) squared distance of features (B, C, …) to the first channels of the full ones, relative to their size."""
    aim = full[:, : narrow.shape[1]]
    return (narrow - aim).square().flatten(1).sum(1) / aim.square().flatten(1).sum(1).clamp_min(1e-12)
