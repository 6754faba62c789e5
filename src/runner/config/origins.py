"""Where a key comes from: a file or the command line; and what an experiment wrote for options that were not chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from runner.config.compose import Composed
from runner.config.keys import signature
from runner.errors import UserError


def leave_out(config: dict[str, Any], composed: Composed) -> list[str]:
    """Take from a section whose option the command line chose the keys that the experiment wrote for another option.

    Only those that the chosen option does not know, and that nobody typed: an experiment is a start, and
    `backbone=vit` must not fail because the experiment says how its ResNet begins.

    Args:
        config: resolved; is changed.

    Returns:
        A line for the user on each section.
    """
    typed, lines = _typed(composed), _lineage(composed)
    notes = []
    for choice, option in composed.choices.items():
        group, section = _place(choice)
        node = _select(config, section)
        if choice not in typed or group == "experiment" or not isinstance(node, dict):
            continue
        target = node.get("_target_")
        try:
            known = {} if target is None else signature(str(target))
        except UserError:  # told where it stands
            continue
        lost = []
        for key in [k for k in node if k != "_target_" and k not in known]:
            path = f"{section}.{key}"
            from_experiment = next((name for name, file in lines.items() if _holds(file, path)), None)
            if from_experiment and not any(t == path or t.startswith(f"{path}.") for t in typed):
                del node[key]
                lost.append((path, from_experiment))
        if lost:
            paths = ", ".join(f"'{path}'" for path, _ in lost)
            notes.append(f"{paths} of +experiment={lost[0][1]} left out: no key of {choice}={option}")
    return notes


def _place(choice: str) -> tuple[str, str]:
    """Group and section of a choice such as "optimizer" or "task@mixture.tasks.depth"."""
    group, _, package = choice.partition("@")
    return group, package or group


def _typed(composed: Composed) -> set[str]:
    """Keys and groups of the command line."""
    return {line.lstrip("+~").partition("=")[0] for line in composed.overrides}


def _lineage(composed: Composed) -> dict[str, Path]:
    """The chosen experiment and those that it builds on: name → file."""
    found: dict[str, Path] = {}
    names = [composed.choices.get("experiment")]
    while names:
        name = names.pop(0)
        file = _file("experiment", name, composed.folders) if name else None
        if name is None or file is None or name in found:
            continue
        found[name] = file
        content = _load(file)
        for entry in content.get("defaults") or [] if isinstance(content, dict) else []:
            if isinstance(entry, str) and entry.startswith("/experiment/"):
                names.append(entry.removeprefix("/experiment/"))
    return found


def _select(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def origins(composed: Composed) -> Callable[[str], str]:
    """Key path → " (in +experiment=demo)" where a chosen file, not the command line, wrote the key."""
    typed = _typed(composed).difference(composed.choices)
    lines = _lineage(composed)

    def origin(path: str) -> str:
        if any(path == key or path.startswith(f"{key}.") for key in typed):
            return ""
        for name, file in lines.items():
            if _holds(file, path):
                return f" (in +experiment={name})"
        for section, option in _options(composed, path):
            if _holds(_file(*option, composed.folders), path[len(section) + 1 :]):
                return f" (in {'='.join(option)})"
        return ""

    return origin


def shows(composed: Composed) -> Callable[[str], str]:
    """Key path of a section → `runner show GROUP/OPTION` for the option that fills it."""

    def see(section: str) -> str:
        for _, (group, option) in _options(composed, section):
            return f"runner show {group}/{option}"
        return f"runner show {composed.name}" if "." not in section else ""

    return see


def _options(composed: Composed, path: str) -> list[tuple[str, tuple[str, str]]]:
    """The (section, (group, option)) that a key path lies in, innermost first."""
    found = []
    for choice, option in composed.choices.items():
        group, section = _place(choice)
        if path == section or path.startswith(f"{section}."):
            found.append((section, (group, option)))
    return sorted(found, key=lambda item: -len(item[0]))


def _file(group: str, option: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            return path
    return None


@cache
def _load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def _holds(path: Path | None, key: str) -> bool:
    """Whether a YAML file itself writes a dotted key."""
    if path is None or not key:
        return False
    node = _load(path)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
