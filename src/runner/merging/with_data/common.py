"""What strategies with data share: task vectors in memory, the base, merges inside merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from runner.config.build import build
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge
from runner.merging.data import TaskData
from runner.merging.engine import Engine
from runner.merging.memory import merge_in_memory, mergeable
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.sources import Models

Vectors = dict[str, dict[str, Tensor]]
"""Expert → tensor → τ."""


def base_of(models: Models) -> dict[str, Tensor]:
    """θ₀ in float32, of the tensors that are merged."""
    assert models.base is not None
    return {name: models.base.whole(name).float() for name in mergeable(models)}


def experts_of(models: Models) -> Vectors:
    """θ_t in float32."""
    names = mergeable(models)
    return {e: {name: source.whole(name).float() for name in names} for e, source in models.experts.items()}


def vectors_of(models: Models, pre: list[Any] | dict[str, Any] | None = None) -> Vectors:
    """Task vectors, after the transforms of `pre`."""
    base = base_of(models)
    if not pre:
        return {e: {n: t[n] - base[n] for n in base} for e, t in experts_of(models).items()}
    engine = Engine(TaskArithmetic(pre=pre), models, list(base))
    engine.prepare()
    found = {e: {n: torch.empty_like(t) for n, t in base.items()} for e in models.names}
    for piece in engine.pieces():
        block = engine.block(piece)
        for index, expert in enumerate(models.names):
            found[expert][piece.name].view(-1)[piece.start : piece.stop] = block.delta(index).reshape(-1)
    return found


def mean_of(tensors: Vectors, name: str) -> Tensor:
    """The plain mean over experts of one tensor."""
    return torch.stack([t[name] for t in tensors.values()]).mean(0)


def merged_by(rule: Merge, models: Models, data: TaskData) -> dict[str, Tensor]:
    """The weights that another strategy gives, where the model is.

    Raises:
        UserError: it gives no single set of weights.
    """
    merged = rule.fit(models, data) if isinstance(rule, DataMerge) else merge_in_memory(rule, models)
    if merged.module is not None or merged.restorers:
        raise UserError(
            f"merge.rule: {type(rule).__name__} gives no single set of weights",
            "choose a rule that does",
            "runner ls merge",
        )
    return {name: tensor.to(data.device) for name, tensor in merged.tensors.items()}


def inner_rule(config: Mapping[str, Any] | Merge | None, where: str = "merge.rule") -> Merge:
    """The strategy inside another one: a config with a `_target_`, or a built one; null is task arithmetic."""
    if isinstance(config, Merge):
        return config
    if config is None:
        return TaskArithmetic()
    return build(config, where=where)


def entropy(logits_BC: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions; of a single logit, that of its two classes."""
    if logits_BC.shape[1] == 1:
        logits_BC = torch.cat([torch.zeros_like(logits_BC), logits_BC], 1)
    log_p = logits_BC.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def with_scale(rule: Merge, scale: float) -> Merge:
    """The same rule with another `scale`."""
    return replace(rule, scale=scale)  # type: ignore[call-arg]


def generator(seed: int) -> torch.Generator:
    """Of random draws on the CPU, so that they do not depend on the device."""
    return torch.Generator().manual_seed(seed)


Report = Callable[[str], None]
