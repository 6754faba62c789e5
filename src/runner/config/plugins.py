"""Packages of the user whose classes a `_target_` may name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from runner.config.build import allow
from runner.errors import Problem

ENTRY_POINT = "runner.plugins"
# fmt: off
NOT_PLUGINS = frozenset({
    "accelerate", "datasets", "hydra", "numpy", "omegaconf", "pip", "rich", "safetensors", "scipy", "setuptools",
    "tokenizers", "torch", "torchmetrics", "torchvision", "transformers", "wandb", "yaml",
})
# fmt: on
"""Libraries that could do anything with a configuration's arguments; a plug-in is code written for the runner."""


@cache
def _installed(entry_points: Callable[..., Any], path: tuple[str, ...]) -> list[str]:
    """Packages that name themselves by an entry point; a sweep asks once per job, and looking takes milliseconds."""
    return [point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=ENTRY_POINT)]


def register(names: Sequence[object]) -> list[Problem]:
    """Allow targets from the packages in `plugins=[…]` and from installed entry points; returns what is wrong.

    The worker calls it with the frozen configuration's `plugins`, the front end while it checks.
    """
    for package in _installed(importlib.metadata.entry_points, tuple(sys.path)):
        allow(package)
    problems = []
    for name in names:
        if not isinstance(name, str):
            continue  # reported as a wrong type
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in NOT_PLUGINS:
            problems.append(
                Problem(f"plugins: '{name}' is a library, not a plug-in of yours", "name a package you wrote")
            )
        elif importlib.util.find_spec(package) is None:
            hint = "install it (pip install -e PATH) or add its folder to PYTHONPATH"
            problems.append(Problem(f"plugins: there is no package '{name}'", hint))
        else:
            allow(package)
    return problems
