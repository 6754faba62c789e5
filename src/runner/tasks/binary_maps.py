"""What saliency and edges share: a weighted binary cross-entropy per pixel, and counts at fixed thresholds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runner.tasks.base import Task, same_shape, where_labelled

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""0.05, 0.10, … 0.95: the probabilities at which maps are cut, as in the released evaluations of ATRC and InvPT."""


def weighted_bce(task: Task, prediction: Tensor, target: Tensor, positive_weight: float | None) -> Tensor:
    """w·y·(-log σ(x)) + (1-w)·(1-y)·(-log(1-σ(x))) of every pixel, in float32; 0 where there is no label.

    Args:
        prediction: logits (B, 1, H, W). target: 0, 1 or NaN, same shape.
        positive_weight: w; None balances every image by itself, w = its share of negative pixels (HED, Xie and Tu
            2015, eq. 2). The released multi-task code takes that share over the batch, which would make the loss
            depend on how a step is split into batches.
    """
    same_shape(task, prediction, target)
    labelled = ~target.isnan()
    truth = torch.where(labelled, target, 0.0).float()
    if positive_weight is None:
        pixels = labelled.sum((1, 2, 3), keepdim=True).clamp_min(1)
        weight: float | Tensor = 1.0 - truth.sum((1, 2, 3), keepdim=True) / pixels
    else:
        weight = positive_weight
    losses = F.binary_cross_entropy_with_logits(prediction.float(), truth, reduction="none")
    return where_labelled(losses * (weight * truth + (1.0 - weight) * (1.0 - truth)), labelled)


def threshold_counts(prediction: Tensor, target: Tensor) -> Tensor:
    """(3, 19): pixels at or above each threshold that are positive, all at or above it, all positive."""
    # Logits are compared with logits: a float32 sigmoid can round to either side, depending on where a pixel lies.
    thresholds = torch.logit(torch.tensor(THRESHOLDS, dtype=torch.float64)).to(prediction.device, prediction.dtype)
    bins = len(THRESHOLDS) + 1  # bin i: exactly i thresholds are reached
    level = torch.bucketize(prediction, thresholds, right=True)
    level = torch.where(target.isnan(), bins, level).reshape(-1)
    positive = torch.where(target.reshape(-1) > 0.5, level, bins)
    reached = [torch.bincount(x, minlength=bins + 1)[:bins].flip(0).cumsum(0).flip(0) for x in (positive, level)]
    return torch.stack([reached[0][1:], reached[1][1:], reached[0][0].expand(len(THRESHOLDS))])


def f_scores(counts: Tensor, beta_squared: float) -> Tensor:
    """F_β at each threshold, (1 + β²)·P·R / (β²·P + R), from `threshold_counts`; NaN where nothing is positive.

    Written as (1 + β²)·tp / (predicted + β²·actual), which needs no special case where P or R is 0/0.
    """
    true, predicted, actual = counts
    return torch.where(actual > 0, (1 + beta_squared) * true / (predicted + beta_squared * actual), torch.nan)


def probability(value: np.ndarray, is_prediction: bool) -> np.ndarray:
    """(H, W) shares of one map: the sigmoid of logits, or the target itself."""
    value = value[0].astype(np.float64)
    return 0.5 * (1.0 + np.tanh(0.5 * value)) if is_prediction else value
