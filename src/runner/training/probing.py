"""Heads fitted to the features of a fixed backbone: the linear probe that fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.heads.pooled import Linear
from runner.errors import UserError
from runner.mixtures.base import Dataset
from runner.mixtures.stream import eval_batches
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.training.evaluate import untouched


def fit_heads(
    model: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    inputs: InputSpec,
    *,
    decay: float,
    batch_size: int,
    device: torch.device,
) -> None:
    """Fit the heads of `tasks` to the backbone's features of the training examples, by L-BFGS; deterministic.

    Minimises the task's mean loss + decay/2 · ‖W‖² on features that are centred and divided by one number, so that
    nearly constant ones are not blown up. Augmentation is off.

    Raises:
        UserError: a head that is not one linear map of pooled features.
    """
    heads: Mapping[str, Any] = {name: model.heads[name] for name in tasks}  # type: ignore[index]
    for name, head in heads.items():
        if not isinstance(head, Linear):
            raise UserError(
                f"finetune.heads=probe fits linear heads on pooled features, task '{name}' has {type(head).__name__}",
                "set finetune.heads=train",
            )
    with untouched(model):
        for name, (features_BD, target_B) in _features(model, tasks, datasets, inputs, batch_size, device).items():
            fit_linear(heads[name].out, tasks[name], features_BD, target_B, decay)


@torch.no_grad()
def _features(
    model: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    inputs: InputSpec,
    batch_size: int,
    device: torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in tasks}
    for dataset in datasets.values():
        if not any(task in tasks for task in dataset.tasks):
            continue
        for group in eval_batches(dataset, batch_size=batch_size, pad_token_id=inputs.pad_token_id):
            on_device = group.to(device)
            pooled: dict[str, Tensor] = {}
            wanted = [name for name in on_device.targets if name in tasks]
            hooks = [
                model.heads[name].register_forward_pre_hook(partial(_keep, pooled, name))  # type: ignore[union-attr,index]
                for name in wanted
            ]
            model(on_device, wanted)
            for hook in hooks:
                hook.remove()
            for name in wanted:
                found[name].append((pooled[name].float(), on_device.targets[name]))
    return {name: (torch.cat([f for f, _ in parts]), torch.cat([t for _, t in parts])) for name, parts in found.items()}


def _keep(pooled: dict[str, Tensor], name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    pooled[name] = arguments[0].pooled


def fit_linear(layer: nn.Linear, task: Task, features_BD: Tensor, target_B: Tensor, decay: float) -> None:
    """Set a linear layer to the minimiser of loss + decay/2 · ‖W‖² on scaled features."""
    mean_D = features_BD.mean(0)
    centred_BD = features_BD - mean_D
    scale = centred_BD.square().mean().sqrt().clamp_min(1e-12)
    scaled_BD = (centred_BD / scale).detach()
    weight_CD = torch.zeros_like(layer.weight, requires_grad=True)
    bias_C = torch.zeros_like(layer.bias, requires_grad=True)
    solver = torch.optim.LBFGS([weight_CD, bias_C], max_iter=200, history_size=20, line_search_fn="strong_wolfe")
    count = task.loss_count(target_B)

    def objective() -> Tensor:
        solver.zero_grad()
        loss = task.loss_sum(F.linear(scaled_BD, weight_CD, bias_C), target_B) / count
        loss = loss + decay / 2 * weight_CD.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.copy_(weight_CD / scale)
        layer.bias.copy_(bias_C - layer.weight @ mean_D)
