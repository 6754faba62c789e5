"""Settings: runs that differ only in their seed, and the parameters in which settings differ from one another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.signature import flatten, weights_part
from runner.reporting.options import option_name
from runner.reporting.read import Run

NOT_A_SETTING = frozenset({"seed", "baseline", "reference", "sweep", "sweep_dir"})
"""Top-level keys, besides those that do not affect weights, in which runs of one setting may differ."""

BASELINE_FREE = ("architecture", "weighting", "merge", "merging", "tasks")
"""Sections in which a single-task baseline differs from the runs it is the zero of."""

MOST_COLUMNS = 6
"""With more varying parameters than this, those that follow from others are named above the table instead."""


@dataclass
class Setting:
    """One configuration but for the seed, and its runs.

    Attributes:
        key: names it. config: the configuration that decides the result, nested, and `flat`: by dotted path.
        runs: seed → the newest completed run; other: what is not completed or was repeated.
        cells: column → its value for people. label: a short name for legends.
    """

    key: str
    config: dict[str, Any]
    flat: dict[str, Any]
    verb: str
    runs: dict[int | str, Run] = field(default_factory=dict)
    other: list[Run] = field(default_factory=list)
    cells: dict[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def all_runs(self) -> list[Run]:
        """Completed runs by seed, then the others."""
        return [*self.runs.values(), *self.other]


@dataclass
class Columns:
    """In what settings differ, and in what they do not.

    Attributes:
        names: the columns. implied: keys that differ too but follow from the columns.
        constant: (key, value) that all share, the parts of a configuration first.
    """

    names: list[str]
    implied: list[str]
    constant: list[tuple[str, str]]


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a setting: the weights-affecting part of a configuration without the seed."""
    return {key: value for key, value in weights_part(config).items() if key not in NOT_A_SETTING}


def without(config: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """A configuration without some top-level sections."""
    return {key: value for key, value in config.items() if key not in sections}


def digest(content: Any) -> str:
    """Equal content, equal name."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def collect(runs: Iterable[Run], configs: Callable[[Run], Mapping[str, Any]]) -> list[Setting]:
    """Put runs with equal settings together; of runs that repeat one another the newest completed one counts.

    Args:
        runs: with a configuration. configs: gives a run's own one (an evaluation has that of the run it looked at).
    """
    found: dict[str, Setting] = {}
    for run in runs:
        config = deciding(configs(run))
        key = digest([config, run.verb])
        setting = found.get(key)
        if setting is None:
            setting = found[key] = Setting(key, config, dict(flatten(config)), run.verb)
        seed: int | str = run.seed if run.seed is not None else "none"
        if run.state != "completed":
            setting.other.append(run)
        elif seed in setting.runs:
            older, newer = sorted((setting.runs[seed], run), key=lambda r: str(r.info.get("created", "")))
            setting.runs[seed] = newer
            setting.other.append(older)
        else:
            setting.runs[seed] = run
    for setting in found.values():
        setting.runs = dict(sorted(setting.runs.items(), key=lambda item: str(item[0]).zfill(12)))
    return list(found.values())


def find_columns(settings: Sequence[Setting], axes: Sequence[str]) -> Columns:
    """Choose the columns of a table and fill `cells` and `label` of every setting.

    A parameter is a column when it differs between settings; a parameter that only some options of a group have is one
    when it differs among settings with that option. Axes of a sweep come first, then parts, then single keys.

    Args:
        settings: the rows. axes: swept keys, in the order of the command.
    """
    words = {setting.key: _overrides(setting) for setting in settings}
    values: dict[str, list[str]] = {}
    shared = set.intersection(*(set(w) for w in words.values())) if words else set()
    for key in [*axes, *(k for k in next(iter(words.values()), {}) if k in shared and k not in axes)]:
        if key in shared and key not in NOT_A_SETTING and key not in values:
            column = [
                text_value(setting.flat[key]) if key in setting.flat else words[setting.key][key]
                for setting in settings
            ]
            if len(set(column)) > 1:
                values[key] = column
    asked = len(values)
    if len({setting.verb for setting in settings}) > 1:
        values["verb"] = [setting.verb for setting in settings]
    varying = _varying(settings)
    parts = [key for key in varying if key.endswith("_target_")]
    for key in sorted(parts, key=_part_order) + [key for key in varying if key not in parts]:
        name = key.removesuffix("._target_")
        if name not in values:
            values[name] = [shown(setting, key) for setting in settings]
    names, implied = list(values), list[str]()
    if asked or len(names) > MOST_COLUMNS:
        names = names[:asked]  # what the command varies is always a column
        for name in list(values)[asked:]:
            (implied if names and _follows(values[name], [values[k] for k in names]) else names).append(name)
    for row, setting in enumerate(settings):
        setting.cells = {name: values[name][row] for name in names}
        setting.label = _label(setting, names)
    return Columns(names, implied, _constant(settings, set(varying)))


def _varying(settings: Sequence[Setting]) -> list[str]:
    """Keys that differ between settings that agree on what they are a parameter of."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.flat))
    parts = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    found = []
    for key in keys:
        values = {_freeze(setting.flat.get(key)) for setting in settings}
        if len(values) < 2:
            continue
        owners = [f"{part}_target_" for part in parts if key.startswith(part) and key != f"{part}_target_"]
        if key.startswith("merging."):  # only merges have it
            owners.append("merge._target_")
        groups: dict[tuple[Any, ...], set[str]] = {}
        for setting in settings:
            group = tuple(setting.flat.get(owner) for owner in owners)
            groups.setdefault(group, set()).add(_freeze(setting.flat.get(key)))
        if any(len(group) > 1 for group in groups.values()):
            found.append(key)
    return found


def _follows(column: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether a column is a function of others."""
    known: dict[tuple[str, ...], str] = {}
    rows = zip(zip(*others, strict=True), column, strict=True)
    return all(known.setdefault(others_row, value) == value for others_row, value in rows)


def _part_order(key: str) -> tuple[int, str]:
    first = ("weighting", "merge", "architecture", "adapter", "backbone", "mixture", "optimizer", "scheduler")
    part = key.removesuffix("._target_")
    return (first.index(part) if part in first else len(first), part)


def shown(setting: Setting, key: str) -> str:
    """A value of a setting's configuration in one short line; a class by the name of its option."""
    if key not in setting.flat:
        return ""
    return option_name(key, setting.flat) if key.endswith("_target_") else text_value(setting.flat[key])


def _label(setting: Setting, names: Sequence[str]) -> str:
    """`pcgrad · lr=0.01`: parts by their name, keys by the last word of their path."""
    words = []
    for name in names:
        value = setting.cells[name]
        short = name.rpartition(".")[2]
        is_part = "." not in name and not re.fullmatch(r"[-+.\deE]+|true|false|null", value)
        words.append(value if is_part else f"{short}={value or '–'}")
    return " · ".join(words)


def _constant(settings: Sequence[Setting], varying: set[str]) -> list[tuple[str, str]]:
    """What all settings share: parts by the name of their option, then every key."""
    if not settings:
        return []
    first = settings[0].flat
    same = [k for k in first if all(_freeze(s.flat.get(k)) == _freeze(first[k]) and k in s.flat for s in settings)]
    parts = [(k.removesuffix("._target_"), option_name(k, first)) for k in same if k.endswith("._target_") and first[k]]
    rest = [(key, text_value(first[key])) for key in same if not key.endswith("_target_") and key not in varying]
    return [*parts, *rest]


def _overrides(setting: Setting) -> dict[str, str]:
    """`key=value` words of the command that made a setting's first run."""
    run = next(iter(setting.all_runs))
    pairs = (word.lstrip("+").partition("=") for word in run.argv if "=" in word and not word.startswith(("-", "~")))
    return {key: value for key, _, value in pairs}


def command_keys(settings: Sequence[Setting]) -> list[str]:
    """Keys that the commands of all settings set."""
    words = [_overrides(setting) for setting in settings]
    return [key for key in (words[0] if words else {}) if all(key in other for other in words)]


def _freeze(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def text_value(value: Any) -> str:
    """A configuration value in one short line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{','.join(map(text_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{text_value(v)}" for k, v in value.items()) + "}"
    return str(value)
