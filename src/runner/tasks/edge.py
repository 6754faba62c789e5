"""Edge detection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import Fraction
from runner.tasks.base import Elementwise, up
from runner.tasks.binary_maps import THRESHOLDS, f_scores, probability, threshold_counts, weighted_bce
from runner.tasks.colours import grey_to_rgb
from runner.tasks.metrics import Metrics


class Edge(Elementwise):
    """Weighted binary cross-entropy on one logit per pixel; F over pixels at fixed thresholds.

    loss_sum: see `weighted_bce`; loss_count: labelled pixels, so that the quotient is InvPT's edge loss.

    The F-measures compare pixel with pixel over the whole split: no thinning, no tolerance, no matching. They are
    *not* the odsF of the benchmarks, which matches thinned edges within a distance, and are lower on thin edges.
    `pixel_f_50` is F1 at probability 0.5, `pixel_f_best` the best F1 over 0.05, 0.10, … 0.95.

    Args:
        positive_weight: weight of edge pixels, 1 - it of the others; null balances every image by itself.
        headline, head: see `Task`.
    """

    kind = "dense"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        positive_weight: Fraction | None = 0.95,
        headline: Literal["pixel_f_best", "pixel_f_50", "loss"] = "pixel_f_best",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = up("pixel_f_best", "pixel_f_50")
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        self.positive_weight = positive_weight

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return weighted_bce(self, prediction, target, self.positive_weight)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        return Metrics({"thresholds": (3, len(THRESHOLDS))}, self._observe, self._summarise)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"thresholds": threshold_counts(prediction, target)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = f_scores(state["thresholds"], 1.0)
        return {"pixel_f_best": scores.max(), "pixel_f_50": scores[THRESHOLDS.index(0.5)]}

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        return grey_to_rgb(probability(value, is_prediction))
