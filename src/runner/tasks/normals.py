"""Surface normal estimation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.legend import Legend
from runner.tasks.base import Elementwise, count, down, same_shape, up, where_labelled
from runner.tasks.colours import DIRECTIONS, directions_to_rgb, error_legend, error_to_rgb
from runner.tasks.metrics import Metrics
from runner.tasks.variants import metrics_with_variants, with_variants

WORST = 60.0
"""Degrees from which on pictures of errors do not get brighter."""

SHARES = (11.25, 22.5, 30.0)
BIN = 0.01
"""Width of a bin of the histogram from which the median is read, degrees."""
BINS = round(180 / BIN)


class Normals(Elementwise):
    """Unit normals from three channels, which are normalised here; angles over all pixels of the split.

    A pixel is labelled where all three components are known and not all 0. loss_sum over labelled pixels: "cosine"
    1 - ⟨n, t⟩; "l1" Σ_c |n_c - t_c| (InvPT, ATRC). loss_count: labelled pixels.

    Metrics, degrees: `mean`, `median` (over all pixels, from a histogram, exact to 0.01°; `median_batch` among the
    variants is the mean of batch medians that some report); shares in 0…1: `within_11.25`, `within_22.5`, `within_30`.

    Args:
        loss: see above.
        headline, head: see `Task`. variants: see `runner.tasks.variants`.
    """

    kind = "dense"
    loss_kind = "regression"

    def __init__(
        self,
        name: str,
        *,
        loss: Literal["cosine", "l1"] = "cosine",
        headline: Literal["mean", "median", "within_11.25", "within_22.5", "within_30", "loss"] = "mean",
        variants: Sequence[str] = (),
        head: Mapping[str, Any] | None = None,
    ) -> None:
        directions = down("mean", "median") | up(*(f"within_{limit:g}" for limit in SHARES))
        directions = with_variants(name, directions, variants)
        super().__init__(name, out_channels=3, directions=directions, headline=headline, head=head)
        self.loss = loss
        self.variants = tuple(variants)

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        same_shape(self, prediction, target)
        labelled = has_normal(target)
        n = unit(prediction.float())
        t = torch.where(labelled, target, 0.0).float()
        losses = (n - t).abs().sum(1, keepdim=True) if self.loss == "l1" else 1.0 - (n * t).sum(1, keepdim=True)
        return where_labelled(losses, labelled)

    def element_counts(self, target: Tensor) -> Tensor:
        return has_normal(target)

    def metrics(self) -> Metrics:
        sums = {"angle": (), "within": (len(SHARES),), "histogram": (BINS,), "pixels": ()}
        return metrics_with_variants(sums, self._observe, self._summarise, self.variants)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        same_shape(self, prediction, target)
        labelled = has_normal(target)
        angle = angles(unit(prediction.double()), unit(torch.where(labelled, target, 0.0).double()))
        labelled = labelled[:, 0]
        bins = (angle.nan_to_num(180.0) / BIN).long().clamp(0, BINS - 1)
        bins = torch.where(labelled, bins, BINS).reshape(-1)
        return {
            "angle": torch.where(labelled, angle, 0.0).sum(),
            "within": torch.stack([count((angle < limit) & labelled) for limit in SHARES]),
            "histogram": torch.bincount(bins, minlength=BINS + 1)[:BINS],
            "pixels": count(labelled),
        }

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        within = state["within"] / state["pixels"]
        values: dict[str, Tensor | float] = {f"within_{limit:g}": within[i] for i, limit in enumerate(SHARES)}
        values["mean"] = state["angle"] / state["pixels"]
        values["median"] = median_of_histogram(state["histogram"], BIN)
        return values

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        if is_prediction:
            value = unit(torch.from_numpy(np.ascontiguousarray(value)).float()[None])[0].numpy()
        return directions_to_rgb(value)

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return unit(torch.from_numpy(np.ascontiguousarray(prediction)).float()[None])[0].numpy()

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        return DIRECTIONS

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        known = np.square(target).sum(0) > 0
        true = unit(torch.from_numpy(np.where(known, target, 0.0)).float()[None])
        found = angles(torch.from_numpy(self.values(prediction))[None], true)[0].numpy()
        return error_to_rgb(np.where(known, found, np.nan), WORST)

    def error_legend(self) -> Legend:
        return error_legend(WORST, "°")


def has_normal(target: Tensor) -> Tensor:
    """(B, 1, H, W): where (B, 3, H, W) holds a direction: no component is NaN, and not all are 0."""
    return squared_length(target) > 0


def squared_length(vector: Tensor) -> Tensor:
    """⟨v, v⟩ along dimension 1, kept; over three channels much faster than `vector_norm`."""
    return vector.square().sum(1, keepdim=True)


def unit(vector: Tensor) -> Tensor:
    """Vectors along dimension 1 scaled to length 1; those shorter than 1e-4 keep their direction but stay shorter.

    Divided by the largest component first, so that nothing overflows; the gradient is bounded also at zero.
    """
    scaled = vector / vector.detach().abs().amax(1, keepdim=True).clamp_min(1e-4)
    return scaled / squared_length(scaled).clamp_min(0.25).sqrt()


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between unit vectors (B, 3, …) → (B, …), by 2·atan2(|a-b|, |a+b|): exact for small angles too."""
    return torch.rad2deg(2 * torch.atan2(squared_length(a - b).sqrt(), squared_length(a + b).sqrt()))[:, 0]


def median_of_histogram(counts: Tensor, width: float) -> float:
    """The median of values counted in equal bins from 0, each value taken to lie evenly in its bin; NaN of nothing."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    reached = counts.cumsum(0)

    def ordered(rank: int) -> float:
        i = int(torch.searchsorted(reached, torch.tensor(float(rank), dtype=reached.dtype)))
        before = float(reached[i] - counts[i])
        return width * (i + (rank - before - 0.5) / float(counts[i]))

    return 0.5 * (ordered((total + 1) // 2) + ordered(total // 2 + 1))
