"""Where the shipped configs lie, what groups and options there are, and what their header comments say.

Nothing heavy is imported here: `runner ls`, `show`, `cp` and shell completion read the YAML files themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runner.errors import UserError, suggest

GROUPS = (
    "experiment",
    "mixture",
    "task",
    "sampler",
    "backbone",
    "architecture",
    "head",
    "adapter",
    "weighting",
    "wrapper",
    "finetune",
    "merge",
    "merging",
    "optimizer",
    "scheduler",
    "trainer",
    "tracking",
    "launch",
    "sweep",
)
"""The config groups, in the order in which `runner ls` shows them."""


@dataclass(frozen=True)
class Option:
    """One YAML file of a config group.

    Attributes:
        group: such as "optimizer".
        name: such as "adamw"; nested folders stay in it ("papers/mtan").
        path: the file.
        summary: the first line of its header comment.
        notes: the header's `key: value` lines, such as paper, cost and run.
    """

    group: str
    name: str
    path: Path
    summary: str
    notes: dict[str, str]

    @property
    def key(self) -> str:
        """`group/name`, as `runner show` and `runner cp` take it."""
        return f"{self.group}/{self.name}"


@cache
def config_root() -> Path:
    """The folder of the shipped configs: inside the installed package, else at the top of the source tree."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parents[1] / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(
        "the shipped configs are missing from this installation",
        f"looked in {package / 'configs'} and {package.parents[1] / 'configs'}",
        "pip install --force-reinstall runner",
    )


def roots(config_dir: str | Path | None = None) -> list[Path]:
    """The folders options are looked up in, first match wins: the user's `--config-dir`, then the shipped ones."""
    if config_dir is None:
        return [config_root()]
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir: there is no folder '{config_dir}'", "give the folder that holds your groups")
    return [folder, config_root()]


def read_header(path: Path) -> tuple[str, dict[str, str]]:
    """The one-line summary and the `key: value` notes of the comments a YAML file opens with."""
    summary, notes = "", {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = line.strip()
            if not text.startswith("#"):
                break
            text = text.lstrip("#").strip()
            if text.startswith("@package") or not text:
                continue
            word, colon, rest = text.partition(":")
            if not summary:
                summary = text
            elif colon and word.isalpha() and word.islower() and rest.startswith(" "):
                notes[word] = rest.strip()
    return summary, notes


def groups(folders: Sequence[Path] | None = None) -> list[str]:
    """Every group that has a folder with options: the known ones first, a user's own after them."""
    found = {
        entry.name
        for folder in folders or [config_root()]
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name != "hydra" and not entry.name.startswith((".", "_"))
    }
    return [g for g in GROUPS if g in found] + sorted(found.difference(GROUPS))


def options(group: str, folders: Sequence[Path] | None = None) -> list[Option]:
    """The options of a group, by name; a user's option hides a shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in folders or [config_root()]:
        base = folder / group
        for path in base.rglob("*.yaml"):
            found.setdefault(path.relative_to(base).with_suffix("").as_posix(), path)
    return [Option(group, name, path, *read_header(path)) for name, path in sorted(found.items())]


def find(key: str, folders: Sequence[Path] | None = None) -> Option:
    """The option that `GROUP/OPTION` (or `GROUP=OPTION`) names.

    Raises:
        UserError: with suggestions, when there is no such group or option.
    """
    group, slash, name = key.strip().lstrip("+").replace("=", "/", 1).partition("/")
    name = name.removesuffix(".yaml")
    known = groups(folders)
    if group not in known:
        holders = [f"{o.group}/{o.name}" for g in known for o in options(g, folders) if o.name == group]
        if not slash and holders:
            raise UserError(f"'{key}' is an option; say which group", f"did you mean {' or '.join(holders)}?")
        raise UserError(f"unknown group '{group}'", suggest(group, known, limit=20), "runner ls")
    listed = options(group, folders)
    for option in listed:
        if option.name == name:
            return option
    what = f"unknown option '{name}' in group '{group}'" if name else f"'{key}' names a group; say which option"
    raise UserError(what, suggest(name, [o.name for o in listed]), f"runner ls {group}")
