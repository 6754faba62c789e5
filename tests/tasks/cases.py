"""One configuration and a generator of batches for every option of configs/task."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from runner.config.build import build
from runner.tasks.base import Task

CONFIGS = Path(__file__).parents[2] / "configs" / "task"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
H, W = 6, 5
BIO = ["O", "B-per", "I-per", "B-loc", "I-loc"]
REQUIRED: dict[str, dict[str, Any]] = {
    "segmentation": {"num_classes": 4},
    "classification": {"num_classes": 7},
    "multi_label": {"num_classes": 3},
    "token_tagging": {"num_classes": 5, "class_names": BIO},
}


def make(name: str, **changes: Any) -> Task:
    """The task of configs/task/<name>.yaml, with what its mixture must give and with `changes`."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | REQUIRED.get(name, {}) | changes
    return build(config, name)


def batch(task: Task, n: int, seed: int, missing: float = 0.3) -> tuple[Tensor, Tensor]:
    """Random predictions and targets of n examples; a share `missing` of the labels is not there."""
    rng = np.random.default_rng(seed)
    prediction, target = GENERATORS[type(task).__name__](task, n, rng)
    if target.ndim == 4 and target.shape[1] == 3:  # normals: a pixel misses one component or all
        gone = rng.random(target[:, :1].shape) < missing
        target = np.where(gone & (rng.random(target.shape) < 0.8), np.nan, target)
    else:
        gone = rng.random(target.shape) < missing
        target = np.where(gone, -100 if target.dtype == np.int64 else np.nan, target)
    if target.dtype != np.int64:
        target = target.astype(np.float32)
    return torch.from_numpy(prediction.astype(np.float32)), torch.from_numpy(target)


def unlabelled(target: Tensor) -> Tensor:
    """The same target without a label."""
    return torch.full_like(target, -100 if target.dtype == torch.int64 else torch.nan)


def _dense_classes(task: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(n, task.out_channels, H, W)), rng.integers(0, task.num_classes - 1, (n, H, W))


def _map(task: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return 2 * rng.normal(size=(n, 1, H, W)), (rng.random((n, 1, H, W)) < 0.3).astype(np.float32)


def _depth(task: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    target = rng.uniform(0.3, 8, (n, 1, H, W))
    target[rng.random(target.shape) < 0.1] = 0.0  # holes
    return rng.uniform(-0.2, 3, (n, 1, H, W)), target


def _normals(task: Any, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    target = rng.normal(size=(n, 3, H, W))
    return rng.normal(size=target.shape), target / np.linalg.norm(target, axis=1, keepdims=True)


GENERATORS: dict[str, Callable[[Any, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "Segmentation": _dense_classes,
    "HumanParts": _dense_classes,
    "Saliency": _map,
    "Edge": _map,
    "Depth": _depth,
    "Normals": _normals,
    "PixelRegression": lambda t, n, rng: (rng.normal(size=(n, 1, H, W)), rng.uniform(0, 1, (n, 1, H, W))),
    "Classification": lambda t, n, rng: (rng.normal(size=(n, t.num_classes)), rng.integers(0, t.num_classes, n)),
    "MultiLabel": lambda t, n, rng: (
        rng.normal(size=(n, t.num_classes)),
        (rng.random((n, t.num_classes)) < 0.4).astype(np.float32),
    ),
    "Binary": lambda t, n, rng: (rng.normal(size=(n, 1)).round(1), (rng.random(n) < 0.4).astype(np.float32)),
    "Regression": lambda t, n, rng: (rng.normal(size=(n, 1)).round(1), rng.normal(size=n).round(1)),
    "TokenTagging": lambda t, n, rng: (rng.normal(size=(n, 8, t.num_classes)), rng.integers(0, t.num_classes, (n, 8))),
}


def measured(task: Task, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Metrics over some batches; warnings are errors."""
    metrics = task.metrics()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prediction, target in batches:
            metrics.update(prediction, target)
        return metrics.compute()


def join(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several batches as one."""
    return torch.cat([p for p, _ in batches]), torch.cat([t for _, t in batches])
