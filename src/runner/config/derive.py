"""The configurations that another one implies: the single-task run of each of its tasks, the experts of a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

from runner.config.compose import compose
from runner.config.keys import signature as keys_of
from runner.config.static import Report

PLAIN = {"architecture": "hard_sharing", "weighting": "equal", "wrapper": "none", "merge": "none"}
"""What a run on its own tasks only, with nothing of a multi-task method in it, has in these groups."""


def on_tasks(config: Mapping[str, Any], tasks: Sequence[str], name: str) -> dict[str, Any]:
    """The frozen configuration that trains a part of the tasks plainly, everything else as it is.

    One backbone with the heads of `tasks`, equal weights, no merge. What is the same for all methods (data, backbone,
    heads, adapter, optimizer, schedule, budget, seed) stays, so that runs which differ in their method only imply the
    same configurations, which are then trained once. Heads are those of the run's architecture where it has the key.

    Args:
        config: a frozen configuration of `runner train`.
        tasks: names of tasks of its mixture.
        name: of the run, for its folder.
    """
    derived = deepcopy(dict(config))
    derived |= {"name": name, "tasks": list(tasks), "run_dir": None, "baseline": None, "reference": None}
    known = config["mixture"]["tasks"]
    derived["mixture"]["tasks"] = {task: deepcopy(known[task]) for task in known if task in tasks}
    for section, plain in _plain_sections().items():
        given = config.get(section) or {}
        shared = keys_of(plain["_target_"]) if section == "architecture" else {}
        derived[section] = deepcopy(plain) | {key: deepcopy(given[key]) for key in shared if key in given}
    if derived["trainer"]["select"].partition("/")[0] not in ("last", *tasks):
        derived["trainer"]["select"] = "auto"
    return derived


def expert_groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Expert → the tasks it is tuned on: the subsets that `merging.experts` names, then every other task by itself.

    Args:
        config: a frozen configuration of `runner train` that merges.
    """
    tasks = list(config["mixture"]["tasks"])
    named = {expert: tuple(own) for expert, own in ((config.get("merging") or {}).get("experts") or {}).items()}
    taken = {task for own in named.values() for task in own}
    return {**named, **{task: (task,) for task in tasks if task not in taken}}


@cache
def _plain_sections() -> dict[str, dict[str, Any]]:
    """The sections of PLAIN as they are composed without an override."""
    from runner.config.freeze import resolve

    composed = compose("train", [f"{group}={option}" for group, option in PLAIN.items()])
    config = resolve(composed, Report())
    return {group: config[group] for group in PLAIN}
