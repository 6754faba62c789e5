"""The names of the options that a frozen configuration was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from runner.config.paths import config_root
from runner.config.signature import flatten
from runner.errors import UserError


def option_name(key: str, flat: Mapping[str, Any]) -> str:
    """What one writes on the command line for a part of a configuration.

    Several options may share a class: the one whose own values are nearest to the configuration's is named.

    Args:
        key: of the class, such as `weighting._target_`.
        flat: dotted path → value, of the whole configuration.
    """
    target = flat.get(key)
    if not target:
        return "none"
    paths = _paths().get(str(target), [])
    if not paths:
        return str(target).rpartition(".")[2]
    part = key.removesuffix("_target_")
    stem = str(target).rpartition(".")[0].rpartition(".")[2]

    def rank(path: Path) -> tuple[int, bool, int, str]:
        own = _own(path) if len(paths) > 1 else {}
        same = sum(flat.get(f"{part}{leaf}", ...) == value for leaf, value in own.items())
        return (len(own) - 2 * same, path.stem != stem, len(path.stem), path.stem)

    return min(paths, key=rank).stem


@cache
def _paths() -> dict[str, list[Path]]:
    """`_target_` → files of the shipped options that have it."""
    found: dict[str, list[Path]] = {}
    try:
        root = config_root()
    except UserError:
        return found  # only names get less familiar
    for path in root.glob("*/*.yaml"):
        match = re.search(r"^_target_:\s*(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            found.setdefault(match[1], []).append(path)
    return found


@cache
def _own(path: Path) -> dict[str, Any]:
    """An option's own values by dotted path."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {leaf: value for leaf, value in flatten(content) if leaf not in ("_target_", "defaults")}
