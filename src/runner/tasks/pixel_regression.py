"""One number per pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.legend import Legend
from runner.tasks.base import Elementwise, count, down, same_shape, where_labelled
from runner.tasks.colours import error_legend, error_to_rgb, grey_legend, grey_to_rgb
from runner.tasks.depth import checked_range
from runner.tasks.metrics import Metrics


class PixelRegression(Elementwise):
    """A number per pixel, such as Taskonomy's keypoint and edge maps, which are regressed and not classified.

    loss_sum sums |x - t| (l1) or (x - t)² (l2) over labelled pixels, loss_count counts them. Metrics over all pixels of
    the split: `mae`, `rmse`.

    Args:
        loss: see above.
        render_range: values from black to white in pictures.
        headline, head: see `Task`.
    """

    kind = "dense"
    loss_kind = "regression"

    def __init__(
        self,
        name: str,
        *,
        loss: Literal["l1", "l2"] = "l1",
        render_range: Sequence[float] = (0.0, 1.0),
        headline: Literal["mae", "rmse", "loss"] = "mae",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, out_channels=1, directions=down("mae", "rmse"), headline=headline, head=head)
        self.loss = loss
        self.low, self.high = checked_range(name, render_range)

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        same_shape(self, prediction, target)
        labelled = ~target.isnan()
        wanted = torch.where(labelled, target, 0.0).float()
        function = {"l1": F.l1_loss, "l2": F.mse_loss}[self.loss]
        return where_labelled(function(prediction.float(), wanted, reduction="none"), labelled)

    def element_counts(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def metrics(self) -> Metrics:
        return Metrics({"sums": (2,), "pixels": ()}, self._observe, self._summarise)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        same_shape(self, prediction, target)
        labelled = ~target.isnan()
        error = torch.where(labelled, prediction.double() - target.double(), 0.0)
        return {"sums": torch.stack([error.abs().sum(), error.square().sum()]), "pixels": count(labelled)}

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = state["sums"] / state["pixels"]
        return {"mae": means[0], "rmse": means[1].sqrt()}

    def render(self, value: np.ndarray, is_prediction: bool) -> np.ndarray:
        return grey_to_rgb((value[0] - self.low) / (self.high - self.low))

    def values(self, prediction: np.ndarray) -> np.ndarray:
        return prediction[0].astype(np.float32)

    def legend(self, values: Sequence[np.ndarray] = ()) -> Legend:
        return grey_legend(f"{self.low:g}", f"{self.high:g}")

    def error(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return error_to_rgb(np.abs(prediction[0] - target[0]), self.high - self.low)

    def error_legend(self) -> Legend:
        return error_legend(self.high - self.low, "")
