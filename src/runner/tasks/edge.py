"""Edge detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from runner.config.kinds import Fraction
from runner.legend import Legend
from runner.tasks.base import Elementwise, up
from runner.tasks.binary_maps import THRESHOLDS, f_scores, probability, threshold_counts, weighted_bce
from runner.tasks.boundaries.metric import BoundaryMetrics, boundary_scores
from runner.tasks.colours import error_legend, error_to_rgb, grey_legend, grey_to_rgb
from runner.tasks.metrics import Metrics


class Edge(Elementwise):
    """Weighted binary cross-entropy on one logit per pixel; odsF, oisF, AP, and F over pixels.

    loss_sum: see `weighted_bce`; loss_count: labelled pixels, so that the quotient is InvPT's edge loss.

    `ods_f`, `ois_f` and `ap` are the benchmarks' numbers: ridges of the predicted map, thinned, in one-to-one
    correspondence with the thinned truth within `max_dist` (`runner.tasks.boundaries`). They are taken at the size the
    mixture evaluates at, where padding is cut off; the published numbers are taken at the images' own size.

    `pixel_f_50` and `pixel_f_best` compare pixel with pixel over the whole split, without thinning, tolerance or
    matching, at probability 0.5 and at the best of 0.05, 0.10, … 0.95: cheap, and much lower on thin edges.

    Args:
        positive_weight: weight of edge pixels, 1 - it of the others; null balances every image by itself.
        max_dist: largest distance of matched pixels as a share of the image's diagonal; null does without the three.
        headline, head: see `Task`.
    """

    kind = "dense"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        positive_weight: Fraction | None = 0.95,
        max_dist: Fraction | None = 0.0075,
        headline: Literal["ods_f", "ois_f", "ap", "pixel_f_best", "pixel_f_50", "loss"] = "ods_f",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        matched = () if max_dist is None else ("ods_f", "ois_f", "ap")
        directions = up(*matched, "pixel_f_best", "pixel_f_50")
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        self.positive_weight = positive_weight
        self.max_dist = max_dist

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return weighted_bce(self, prediction, target, self.positive_weight)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        sums = {"thresholds": (3, len(THRESHOLDS))}
        if self.max_dist is None:
            return Metrics(sums, self._observe, self._summarise)
        return BoundaryMetrics(self.max_dist, sums, self._observe, self._summarise)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"thresholds": threshold_counts(prediction, target)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        scores = f_scores(state["thresholds"], 1.0)
        values: dict[str, Tensor | float] = dict(boundary_scores(state)) if "boundary" in state else {}
        return values | {"pixel_f_best": scores.max(), "pixel_f_50": scores[THRESHOLDS.index(0.5)]}

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        return grey_to_rgb(probability(value, is_prediction))

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return probability(prediction, True).astype(np.float32)

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        return grey_legend("no edge", "edge")

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return error_to_rgb(np.abs(self.values(prediction) - target[0]), 1.0)

    def error_legend(self) -> Legend:
        return error_legend(1.0, "")
