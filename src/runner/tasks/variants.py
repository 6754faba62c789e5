"""Metrics as other code bases average them: over batches or over images, instead of over all pixels of a split.

Released evaluations differ in this. MTAN, Nash-MTL and CAGrad take every number of NYUv2 per batch and average over the
batches, medians of angles included; LibMTL averages depth errors per batch and takes the rest over all pixels. Such a
number depends on how a split is cut into batches (`trainer.eval_batch_size`) or on how much of each image is labelled,
and is a little different from that over all pixels: it is for comparison with what was published, under its own name.

    miou_batch, rmse_image, median_batch, …     the mean over batches (images) of the metric of each
    median_batch_median, …                      the median over batches (images) of the metric of each
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runner.errors import Problem, UserError, suggest
from runner.tasks.base import Direction
from runner.tasks.metrics import KEPT, Metrics, Observe, Summarise

_ENDINGS = ("_batch_median", "_image_median", "_batch", "_image")


def split_name(variant: str) -> tuple[str, str]:
    """(metric, ending) of a variant's name; ("", "") where it has no such ending."""
    ending = next((e for e in _ENDINGS if variant.endswith(e)), "")
    return (variant.removesuffix(ending), ending) if ending else ("", "")


def with_variants(task: str, directions: Mapping[str, Direction], variants: Sequence[str]) -> dict[str, Direction]:
    """A task's directions together with those of its variants.

    Raises:
        UserError: a name that is not a metric of this task with one of the endings.
    """
    known = [metric + ending for metric in directions for ending in reversed(_ENDINGS)]
    problems = [
        Problem(
            f"task '{task}' has no metric variant '{variant}'",
            suggest(variant, known) or f"a metric with one of {', '.join(_ENDINGS)}: {', '.join(known[:4])}, …",
        )
        for variant in variants
        if variant not in known
    ]
    if problems:
        raise UserError(problems)
    return dict(directions) | {variant: directions[split_name(variant)[0]] for variant in variants}


def metrics_with_variants(
    sums: Mapping[str, tuple[int, ...]], observe: Observe, summarise: Summarise, variants: Sequence[str]
) -> Metrics:
    """The metrics of a dense task, and of each batch or image what its variants need: a few numbers each.

    Args:
        sums, observe, summarise: as `Metrics` takes them. variants: names that `with_variants` accepts.
    """
    if not variants:
        return Metrics(sums, observe, summarise)
    parts = [split_name(variant) for variant in variants]

    def alone(prediction: Tensor, target: Tensor, where: str) -> list[float]:
        seen = {name: value.to("cpu", torch.float64) for name, value in observe(prediction, target).items()}
        values = summarise(seen)
        return [float(values[metric]) if where in ending else math.nan for metric, ending in parts]

    def observe_parts(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        rows = []
        if any("_batch" in ending for _, ending in parts):
            rows.append(alone(prediction, target, "_batch"))
        if any("_image" in ending for _, ending in parts):
            rows += [alone(prediction[i : i + 1], target[i : i + 1], "_image") for i in range(len(target))]
        return {**observe(prediction, target), KEPT: torch.tensor(rows, dtype=torch.float64)}

    def summarise_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        values = dict(summarise({name: value for name, value in state.items() if name != KEPT}))
        for column, (variant, (_, ending)) in enumerate(zip(variants, parts, strict=True)):
            found = state[KEPT][:, column]
            found = found[~found.isnan()]  # batches without a label, and rows of the other kind
            if not len(found):
                values[variant] = math.nan
            else:
                values[variant] = found.quantile(0.5) if ending.endswith("_median") else found.mean()
        return values

    return Metrics(sums, observe_parts, summarise_parts, keep=len(variants))
