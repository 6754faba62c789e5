"""The losses of a step's own batch after its update, as if nobody had looked.

Some weightings (FAMO) ask how much the step changed each loss. For the answer to be about the weights alone, the second
forward repeats the first one with everything else unchanged: the same examples, training mode, the same dropout masks.
And it leaves nothing behind: not in BatchNorm's or any other buffer, not in the random generators, not in `.grad`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.randomness import rng_state, set_rng_state
from runner.training.forward import Forward
from runner.types import Batch
from runner.weighting.engine import Engine


def second_losses(
    forward: Forward, model: nn.Module, micro_batches: Sequence[Batch], engine: Engine, rng: Mapping[str, Any]
) -> Tensor:
    """(k,) float32 global losses of the step's present tasks under the current weights.

    Every rank must call it: losses are summed over ranks and micro-batches as in `Engine`.

    Args:
        forward: as in the step's first pass.
        model: whose buffers to keep; `forward.model` without compilation.
        micro_batches: of this rank, those of the step.
        engine: after its `finish`, for the counts and the tasks that are present.
        rng: `rng_state()` from right before the first pass.
    """
    losses = torch.zeros(len(engine.tasks), dtype=torch.float64, device=engine.device)
    with torch.no_grad(), buffers_kept(model), random_replayed(rng):
        for batch in micro_batches:
            sums = forward.loss_sums(batch)
            for k in engine.present:
                if engine.tasks[k] in sums:
                    losses[k] += (sums[engine.tasks[k]].float() / engine.counts[k].item()).double()
    return engine.reduce(losses)[engine.present].float()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give every buffer of the model its value back: running statistics, counters, and whatever a layer keeps."""
    buffers = list(model.buffers())
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)


@contextmanager
def random_replayed(state: Mapping[str, Any]) -> Iterator[None]:
    """Draw the numbers that were drawn after `state`; afterwards, go on as if none had been drawn."""
    now = rng_state()
    set_rng_state(state)
    try:
        yield
    finally:
        set_rng_state(now)
