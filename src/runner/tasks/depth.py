"""Depth estimation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.errors import UserError
from runner.legend import Legend
from runner.tasks.base import Elementwise, count, down, same_shape, up, where_labelled
from runner.tasks.colours import error_legend, error_to_rgb, range_legend, range_to_rgb
from runner.tasks.metrics import Metrics
from runner.tasks.variants import metrics_with_variants, with_variants

NEAREST = 1e-3
"""Smallest predicted depth in metres where a logarithm or a ratio is taken, and smallest inverse depth in 1/m."""

DELTA = 1.25
"""δ_i is the share of pixels with max(p/t, t/p) < 1.25^i."""


class Depth(Elementwise):
    """Depth in metres, from a head that predicts it directly, as a logarithm, or as its inverse.

    loss_sum sums ℓ(x - f(t)) over labelled pixels (targets that are finite and above 0), loss_count counts them. f is
    the identity, log or 1/t, as `space` says:

    - l1: |d|, l2: d²; with `space: log` l1 is the log loss, with `space: inverse` the inverse-depth loss;
    - berhu: |d| up to c and (d² + c²)/2c above, c = max|d|/5 (Laina et al. 2016, there over the batch, here over the
      image, so that the loss does not depend on how a step is split);
    - silog: d² less half the squared image mean of d (Eigen et al. 2014, eq. 4, λ = ½); needs `space: log`.

    Metrics in metres over all pixels of the split: `abs_err`, `rel_err` = mean |p-t|/t, `rmse`, `rmse_log`, and the
    shares `delta1`…`delta3`. Predictions are raised to 1 mm for `rmse_log` and the shares, and inverse depths to
    1e-3 / m.

    Args:
        loss, space: see above.
        render_range: nearest and farthest depth of pictures, metres.
        headline, head: see `Task`. variants: see `runner.tasks.variants`.
    """

    kind = "dense"
    loss_kind = "regression"

    def __init__(
        self,
        name: str,
        *,
        loss: Literal["l1", "l2", "berhu", "silog"] = "l1",
        space: Literal["metres", "log", "inverse"] = "metres",
        render_range: Sequence[float] = (0.0, 10.0),
        headline: Literal["abs_err", "rel_err", "rmse", "rmse_log", "delta1", "delta2", "delta3", "loss"] = "rmse",
        variants: Sequence[str] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = down("abs_err", "rel_err", "rmse", "rmse_log") | up("delta1", "delta2", "delta3")
        directions = with_variants(name, directions, variants)
        super().__init__(name, out_channels=1, directions=directions, headline=headline, head=head)
        if loss == "silog" and space != "log":
            raise UserError(f"task '{name}': loss 'silog' compares logarithms", "set space: log, or loss: l1")
        self.loss = loss
        self.variants = tuple(variants)
        self.space = space
        self.low, self.high = checked_range(name, render_range)

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        same_shape(self, prediction, target)
        labelled = has_depth(target)
        metres = torch.where(labelled, target, 1.0).float()
        wanted = {"metres": lambda t: t, "log": torch.log, "inverse": torch.reciprocal}[self.space](metres)
        difference = torch.where(labelled, prediction.float() - wanted, 0.0)
        size = difference.abs()
        if self.loss == "l1":
            return size
        if self.loss == "l2":
            return difference.square()
        if self.loss == "berhu":
            c = (size.detach().amax((1, 2, 3), keepdim=True) / 5).clamp_min(torch.finfo(torch.float32).tiny)
            return where_labelled(torch.where(size <= c, size, 0.5 * (size * (size / c) + c)), labelled)
        # Σ d² - ½ (Σ d)²/n of an image, as a sum over its pixels; d is 0 where there is no label.
        mean = difference.sum((1, 2, 3), keepdim=True) / labelled.sum((1, 2, 3), keepdim=True).clamp_min(1)
        return difference * (difference - 0.5 * mean)

    def element_counts(self, target: Tensor) -> Tensor:
        return has_depth(target)

    def metrics(self) -> Metrics:
        sums = {"sums": (7,), "pixels": ()}
        return metrics_with_variants(sums, self._observe, self._summarise, self.variants)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        same_shape(self, prediction, target)
        labelled = has_depth(target)
        t = torch.where(labelled, target, 1.0).double()
        p = torch.where(labelled, self.metres(prediction.double()), 1.0)
        error = (p - t).abs()
        positive = p.clamp_min(NEAREST)
        ratio = torch.maximum(positive / t, t / positive)
        per_pixel = [error, error / t, error.square(), (positive.log() - t.log()).square()]
        per_pixel += [(ratio < DELTA**i) & labelled for i in (1, 2, 3)]
        return {"sums": torch.stack([x.sum(dtype=torch.float64) for x in per_pixel]), "pixels": count(labelled)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = state["sums"] / state["pixels"]
        return {
            "abs_err": means[0],
            "rel_err": means[1],
            "rmse": means[2].sqrt(),
            "rmse_log": means[3].sqrt(),
            "delta1": means[4],
            "delta2": means[5],
            "delta3": means[6],
        }

    def metres(self, prediction: Tensor) -> Tensor:
        """What the head predicts, in metres."""
        if self.space == "log":
            return prediction.exp()
        return prediction.clamp_min(NEAREST).reciprocal() if self.space == "inverse" else prediction

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        depth = torch.from_numpy(np.ascontiguousarray(value[0])).double()
        depth = self.metres(depth) if is_prediction else torch.where(has_depth(depth), depth, torch.nan)
        return range_to_rgb(depth.numpy(), self.low, self.high)

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return self.metres(torch.from_numpy(np.ascontiguousarray(prediction[0])).double()).float().numpy()

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        return range_legend(self.low, self.high, " m")

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        true = np.where((target[0] > 0) & np.isfinite(target[0]), target[0], np.nan)
        return error_to_rgb(np.abs(self.values(prediction) - true), self.worst)

    def error_legend(self) -> Legend:
        return error_legend(self.worst, " m")

    @property
    def worst(self) -> float:
        """The error in metres from which on pictures of errors do not get brighter: a fifth of the range."""
        return (self.high - self.low) / 5


def has_depth(target: Tensor) -> Tensor:
    """Where a depth is known: finite and above 0 (archives mark holes with 0)."""
    return target.isfinite() & (target > 0)


def checked_range(task: str, values: Sequence[float]) -> tuple[float, float]:
    """(low, high) of a picture's colours.

    Raises:
        UserError: not two growing numbers.
    """
    if len(values) != 2 or not values[0] < values[1]:
        raise UserError(f"task '{task}': render_range must be two growing numbers, not {list(values)}")
    return float(values[0]), float(values[1])
