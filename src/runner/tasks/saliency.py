"""Salient object detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import Fraction, PositiveFloat
from runner.legend import Legend
from runner.tasks.base import Elementwise, count, down, up
from runner.tasks.binary_maps import THRESHOLDS, f_scores, probability, threshold_counts, weighted_bce
from runner.tasks.colours import error_legend, error_to_rgb, grey_legend, grey_to_rgb
from runner.tasks.metrics import Metrics
from runner.tasks.variants import metrics_with_variants, with_variants


class Saliency(Elementwise):
    """Binary cross-entropy on one logit per pixel; `max_f` and `mae`.

    loss_sum: see `weighted_bce`; loss_count: labelled pixels. `max_f` is the best F_β over 19 thresholds with
    counts taken over the whole split (as ATRC and InvPT evaluate PASCAL-Context); `mae` is the mean of |σ(x) - y|.
    The sigmoid is applied once, here; heads give logits.

    Args:
        positive_weight: weight of salient pixels, 1 - it of the others; null balances every image by itself.
        beta_squared: β² of the F-measure; 0.3 weighs precision more, as usual for saliency.
        headline, head: see `Task`. variants: see `runner.tasks.variants`.
    """

    kind = "dense"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        positive_weight: Fraction | None = None,
        beta_squared: PositiveFloat = 0.3,
        headline: Literal["max_f", "mae", "loss"] = "max_f",
        variants: Sequence[str] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = with_variants(name, up("max_f") | down("mae"), variants)
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        self.positive_weight = positive_weight
        self.variants = tuple(variants)
        self.beta_squared = beta_squared

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return weighted_bce(self, prediction, target, self.positive_weight)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        sums = {"thresholds": (3, len(THRESHOLDS)), "error": (), "pixels": ()}
        return metrics_with_variants(sums, self._observe, self._summarise, self.variants)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        labelled = ~target.isnan()
        error = (torch.sigmoid(prediction.double()) - target).abs()
        return {
            "thresholds": threshold_counts(prediction, target),
            "error": torch.where(labelled, error, 0.0).sum(),
            "pixels": count(labelled),
        }

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = f_scores(state["thresholds"], self.beta_squared)
        return {"max_f": scores.max(), "mae": state["error"] / state["pixels"]}

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        return grey_to_rgb(probability(value, is_prediction))

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return probability(prediction, True).astype(np.float32)

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        return grey_legend("background", "salient")

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return error_to_rgb(np.abs(self.values(prediction) - target[0]), 1.0)

    def error_legend(self) -> Legend:
        return error_legend(1.0, "")
