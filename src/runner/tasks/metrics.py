"""Accumulators of metrics: exact however a split is spread over batches and processes.

Everything a metric needs is a few sums (float64: exact counts, and sums that do not depend on the batches), plus, for
the rank statistics of pooled tasks, the values themselves. One message per task brings them together, also where a
process saw no batch. The pixel metrics of torchmetrics 1.9 are not used: under deterministic algorithms its confusion
matrix compares every pixel with every cell of the matrix (gigabytes for 40 classes); its AUROC and average
precision are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

KEPT = "kept"
"""The key under which an `observe` function hands over values to keep, (n, width)."""

Observe = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
Summarise = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor | float]]


class Metrics:
    """The metrics of one task over one pass.

    Args:
        sums: name → shape of each sum.
        observe: (prediction, target) of a batch → what to add to each sum; and under `KEPT` rows to keep.
        summarise: the sums over the whole split (CPU, float64) and the kept rows → metric → value.
        keep: width of the kept rows, 0 for none.
    """

    def __init__(
        self, sums: Mapping[str, tuple[int, ...]], observe: Observe, summarise: Summarise, keep: int = 0
    ) -> None:
        self._shapes = dict(sums)
        self._observe = observe
        self._summarise = summarise
        self._width = keep
        self._device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=self._device) for name, shape in self._shapes.items()
        }
        self._kept: list[Tensor] = []

    def to(self, device: torch.device | str) -> Metrics:
        """Accumulate on `device`."""
        self._device = torch.device(device)
        self._sums = {name: value.to(self._device) for name, value in self._sums.items()}
        return self

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take in a batch; nothing of it stays in memory beyond the sums and the kept rows."""
        seen = self._observe(prediction.detach().float(), target)
        for name, value in seen.items():
            if name == KEPT:
                self._kept.append(value.to("cpu", torch.float64))
            else:  # not in place: sums made in inference mode may be continued outside of it
                self._sums[name] = self._sums[name] + value.to(self._device, torch.float64)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Metric → value over everything all processes have seen; NaN where nothing was labelled.

        In a multi-process run every process must call it, and all get the same values.
        """
        flat = torch.cat([value.reshape(-1) for value in self._sums.values()] or [torch.zeros(0, dtype=torch.float64)])
        kept = torch.cat(self._kept) if self._kept else torch.zeros(0, self._width, dtype=torch.float64)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            device = _message_device()
            flat = flat.to(device)
            dist.all_reduce(flat)
            if self._width:
                kept = _gather_rows(kept.to(device))
        state = {}
        position = 0
        flat = flat.cpu()
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            state[name] = flat[position : position + size].reshape(shape)
            position += size
        state[KEPT] = kept.cpu()
        return {name: float(value) for name, value in self._summarise(state).items()}


def _message_device() -> torch.device:
    """Where tensors must lie to be sent: NCCL only carries those on a GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")


def _gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, width) of all processes, in the order of the ranks; n may differ and be 0."""
    world = dist.get_world_size()
    lengths = torch.zeros(world, dtype=torch.int64, device=rows.device)
    lengths[dist.get_rank()] = len(rows)
    dist.all_reduce(lengths)
    longest = int(lengths.max())
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths.tolist(), strict=True)])


# ---- pieces of metrics that several tasks share ---------------------------------------------------------------------


def class_counts(predicted: Tensor, target: Tensor, num_classes: int, missing: int) -> Tensor:
    """Per class: elements that are right, that are predicted as it, that are labelled with it; (3, num_classes).

    Args:
        predicted, target: class numbers of the same shape; elements whose target is `missing` are left out.
    """
    spare = num_classes  # one more bin takes what is left out: cheaper than indexing, and it never waits for the device
    labelled = target != missing
    true = torch.where(labelled, target, spare).reshape(-1)
    said = torch.where(labelled, predicted, spare).reshape(-1)
    right = torch.where(true == said, true, spare)
    return torch.stack([torch.bincount(x, minlength=num_classes + 1)[:num_classes] for x in (right, said, true)])


def accuracy(counts: Tensor) -> Tensor:
    """Share of right elements, from `class_counts`."""
    return counts[0].sum() / counts[2].sum()


def mean_recall(counts: Tensor) -> Tensor:
    """Recall averaged over the classes that occur in the targets (balanced accuracy, mean pixel accuracy)."""
    return (counts[0] / counts[2])[counts[2] > 0].mean()


def mean_iou(counts: Tensor, absent: float | None = None) -> Tensor:
    """Intersection over union averaged over classes, over one global count of elements; NaN of no elements.

    Args:
        counts: from `class_counts`.
        absent: what a class counts as that occurs neither in the predictions nor in the targets; None leaves it out.
    """
    union = counts[1] + counts[2] - counts[0]
    if absent is None or not (union > 0).any():
        return (counts[0] / union)[union > 0].mean()
    return torch.where(union > 0, counts[0] / union.clamp_min(1), absent).mean()


def mean_f1(counts: Tensor) -> Tensor:
    """F1 averaged over the classes that occur in predictions or targets (as scikit-learn's macro average)."""
    total = counts[1] + counts[2]
    return (2 * counts[0] / total)[total > 0].mean()


def matthews(counts: Tensor) -> Tensor:
    """Matthews correlation of any number of classes (Gorodkin 2004); NaN where one side is constant."""
    right, said, true = counts[0].sum(), counts[1], counts[2]
    total = true.sum()
    covariance = right * total - (said * true).sum()
    return covariance / torch.sqrt((total**2 - (said**2).sum()) * (total**2 - (true**2).sum()))


def area_under_roc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve, all thresholds; NaN unless both labels occur.

    Args:
        scores: (n,) float64 probabilities. labels: (n,) of 0 and 1.
    """
    if not (labels == 0).any() or not (labels == 1).any() or scores.isnan().any():
        return torch.tensor(math.nan)
    from torchmetrics.functional.classification import binary_auroc  # two seconds of imports

    return binary_auroc(scores, labels.long(), validate_args=False)


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision; NaN without a positive label. Arguments as in `area_under_roc`."""
    if not (labels == 1).any() or scores.isnan().any():
        return torch.tensor(math.nan)
    from torchmetrics.functional.classification import binary_average_precision

    return binary_average_precision(scores, labels.long(), validate_args=False)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of (n,) float64 values; NaN below two values or where one side is constant."""
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return torch.tensor(math.nan)
    a, b = a - a.mean(), b - b.mean()
    a, b = a / torch.linalg.vector_norm(a), b / torch.linalg.vector_norm(b)
    return (a * b).sum().clamp(-1.0, 1.0)


def mid_ranks(values: Tensor) -> Tensor:
    """Ranks 1…n of (n,) values, float64; equal values share the mean of their ranks. All NaN where a value is."""
    if values.isnan().any():
        return torch.full_like(values, math.nan, dtype=torch.float64)
    _, inverse, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    counts = counts.double()
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse]
