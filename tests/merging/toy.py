"""A small architecture with known layers, experts of it, and data in memory."""

from __future__ import annotations

import torch
from torch import nn

from runner.architectures.hard_sharing import HardSharing
from runner.merging.data import TaskData, without_targets
from runner.merging.sources import Models
from runner.tasks.classification import Classification
from runner.types import Features, Group


class ToyBackbone(nn.Module):
    """numeric (B, 6) → pooled (B, 5): linear, LayerNorm, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.spec = type("Spec", (), {"dim": 5})()

    def forward(self, inputs):
        return Features(pooled=self.second(torch.relu(self.norm(self.first(inputs["numeric"])))))


class ToyHead(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(5, classes)

    def forward(self, features):
        return self.out(features.pooled)


class ToyModel(nn.Module):
    def __init__(self, tasks: dict[str, int]) -> None:
        super().__init__()
        self.backbone = ToyBackbone()
        self.heads = nn.ModuleDict({name: ToyHead(classes) for name, classes in tasks.items()})

    def forward(self, group, tasks):
        features = self.backbone(group.inputs)
        return {task: self.heads[task](features) for task in tasks}

    def all_backbones(self):
        return [self.backbone]


TASKS = {"a": 3, "b": 4}


def body(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items() if n.startswith("backbone.")}


def make(tasks: dict[str, int] | None = None, spread: float = 0.3, rows: int = 40, seed: int = 0):
    """(models, data): experts at a distance of `spread` from the base; 0 makes them all equal to it."""
    tasks = tasks or TASKS
    torch.manual_seed(seed)
    model = ToyModel(tasks).eval()
    base = body(model)
    experts = {
        task: {n: t + spread * torch.randn(t.shape) / t.shape[-1] ** 0.5 for n, t in base.items()} for task in tasks
    }
    described = {name: Classification(name, num_classes=classes) for name, classes in tasks.items()}
    groups = {}
    for task, classes in tasks.items():
        inputs = {"numeric": torch.randn(rows, 6)}
        with torch.no_grad():  # labels that the expert mostly gets right
            logits = torch.func.functional_call(model, experts[task], (Group("x", inputs), [task]))[task]
        labels = (logits + 0.1 * torch.randn(rows, classes)).argmax(1)
        groups[task] = Group(task, inputs, {task: labels})
    data = TaskData(
        model,
        described,
        {t: without_targets(g) for t, g in groups.items()},
        groups,
        groups,
        reference=dict.fromkeys(tasks, 1.0),
    )
    return Models.in_memory(experts, base), data


def outputs(model, data) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {t: model(g, [t])[t] for t, g in data.validation.items()}


def outputs_of(tensors, data) -> dict[str, torch.Tensor]:
    return outputs(data.runs(tensors), data)


def make_from(backbone: nn.Module, inputs: dict[str, torch.Tensor], spread: float = 0.05):
    """(models, data) as `make`, on a real backbone that gives pooled features of these inputs."""
    torch.manual_seed(0)
    tasks = {name: Classification(name, num_classes=classes) for name, classes in TASKS.items()}
    linear = {"_target_": "runner.architectures.heads.pooled.Linear"}
    model = HardSharing(lambda: backbone, tasks, dense_head={}, pooled_head=linear, token_head={}).eval()
    base = body(model)

    def tuned(tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor + spread * tensor.abs().mean() * torch.randn(tensor.shape) if tensor.is_floating_point() else tensor
        )

    experts = {task: {n: tuned(t) for n, t in base.items()} for task in tasks}
    rows = len(next(iter(inputs.values())))
    groups = {t: Group(t, inputs, {t: torch.arange(rows) % TASKS[t]}) for t in tasks}
    bare = {t: without_targets(g) for t, g in groups.items()}
    return Models.in_memory(experts, base), TaskData(model, tasks, bare, groups, groups, dict.fromkeys(tasks, 1.0))
