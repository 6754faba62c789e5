"""Architectures on tiny backbones, for tests of what each of them computes."""

from __future__ import annotations

from typing import Any

import torch

from runner.backbones.base import Backbone
from runner.config.build import build
from runner.types import Group
from tests.architectures.samples import task
from tests.backbones.samples import SPECS, example, kind_of, option

TASKS = {n: task(n, "dense", c) for n, c in (("segmentation", 5), ("depth", 1), ("normals", 3))}
TABLE = {"income": task("income", "pooled", 1), "married": task("married", "pooled", 1)}
NARROW = {"_target_": "runner.architectures.heads.fcn.FCN", "channels": 8}


def make(name: str, tasks: Any = TASKS, backbone: Any = "resnet", seed: int = 0, **changes: Any) -> Any:
    """An architecture with changed keys; `backbone` is an option or an option with changed keys."""
    own = {"size": "tiny", **(backbone if isinstance(backbone, dict) else {"name": backbone})}
    chosen = {**option("backbone", own.pop("name")), **own}

    def make_backbone() -> Backbone:
        return build(chosen, SPECS[kind_of(chosen)], where="backbone")

    torch.manual_seed(seed)
    return build({**option("architecture", name), "dense_head": NARROW, **changes}, make_backbone, tasks)


def images(batch: int = 2, size: tuple[int, int] = (64, 64)) -> Group:
    """Random images."""
    return Group("images", example("image", batch=batch, size=size))


def table(batch: int = 4) -> Group:
    """Random rows of a table."""
    return Group("table", example("table", batch=batch))


def copy_into(target: Any, source: Any, rename: Any = lambda name: name) -> None:
    """Give `target` the weights of `source` that have its names, after `rename`."""
    state = target.state_dict()
    found = {rename(name): value for name, value in source.state_dict().items()}
    target.load_state_dict({name: found.get(name, value) for name, value in state.items()})


def count(model: Any) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
