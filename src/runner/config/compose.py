"""From overrides to a composed configuration, with every mistake in them told at once and in our words.

Hydra stops at the first mistake and answers in its own terms. So overrides are taken one by one: their syntax, their
group and option, their key. Those that cannot be right are set aside as problems, the others are composed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from runner.config import paths
from runner.config.explain import check_file, explain, near, value_above
from runner.config.overrides import (
    extra_folders,
    first_value,
    is_hydra,
    option_problems,
    parse,
    parse_one,
    sweep_problem,
    sweep_values,
)
from runner.config.remembered import remember_files
from runner.errors import Problem, UserError, first_line, suggest

ADDED = ("experiment", "sweep")
"""Groups that `train.yaml` does not name: `experiment=x` means `+experiment=x`."""


@dataclass
class Composed:
    """A configuration as Hydra composed it.

    Attributes:
        name: of the primary config, "train" or "eval".
        config: the job's part, not yet resolved.
        hydra: Hydra's own part.
        choices: which option each group got, such as {"optimizer": "adamw", "task@mixture.tasks.depth": "depth"}.
        overrides: the command line's overrides as Hydra takes them (`experiment=x` → `+experiment=x`, …).
        folders: where options were looked up.
        problems: mistakes in the overrides that were set aside.
        doubtful: groups whose choice was set aside: what stands in the section is not what was asked for.
        notes: what to tell the user of a configuration that is in order.
    """

    name: str
    config: DictConfig
    hydra: DictConfig
    choices: dict[str, str]
    overrides: list[str]
    folders: list[Path]
    problems: list[Problem] = field(default_factory=list)
    doubtful: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        """Whether the configuration itself asks for a sweep (`hydra.mode: MULTIRUN`)."""
        return self.hydra.mode == RunMode.MULTIRUN


@contextlib.contextmanager
def loader(folders: Sequence[Path], job: str) -> Iterator[ConfigLoader]:
    """A Hydra config loader over folders, first match wins; Hydra's global state is put back afterwards."""
    version.setbase("1.3")
    before, config_before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    search = create_config_search_path(str(folders[0]))
    for folder in folders[1:]:
        search.prepend("runner", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()  # a configuration may need that of another experiment while it is composed
    try:
        configs = Hydra.create_main_hydra2(job, search).config_loader
        remember_files(configs)
        yield configs
    finally:
        GlobalHydra.instance().hydra = before
        HydraConfig.instance().cfg = config_before


def compose(
    config_name: str, overrides: Sequence[str], config_dir: str | None = None, *, multirun: bool = False
) -> Composed:
    """Compose `train` or `eval` with overrides.

    Args:
        config_name: the primary config.
        overrides: as on the command line; the leading + of `experiment=` may be missing.
        config_dir: the user's own folder of groups, searched before the shipped one.
        multirun: whether several values per key are meant as a sweep; the first of each is composed then.

    Raises:
        UserError: nothing could be composed. Mistakes in single overrides are returned in `problems`.
    """
    with composer(config_name, config_dir) as compose_one:
        return compose_one(list(overrides), multirun)


@contextlib.contextmanager
def composer(config_name: str, config_dir: str | None = None) -> Iterator[Callable[[list[str], bool], Composed]]:
    """A `compose` for many calls over the same files: what two calls have in common is done once.

    Raises:
        UserError: there is no such primary config.
    """
    folders = paths.roots(config_dir)
    if not any((folder / f"{config_name}.yaml").is_file() for folder in folders):
        names = {p.stem for folder in folders for p in folder.glob("*.yaml")}
        raise UserError(f"there is no config '{config_name}.yaml'", suggest(config_name, names))
    with loader(folders, config_name) as configs:
        shared = _Shared(configs, config_name, folders)
        yield lambda lines, multirun: _compose(shared, lines, multirun)


@dataclass
class _Shared:
    """What the calls of one `composer` share: the loader, and what was found out before."""

    configs: ConfigLoader
    name: str
    folders: list[Path]
    known: dict[tuple[Path, ...], list[str]] = field(default_factory=dict)
    options: dict[tuple[str, tuple[Path, ...]], list[Problem]] = field(default_factory=dict)
    loaded: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def groups(self, folders: list[Path]) -> list[str]:
        key = tuple(folders)
        if key not in self.known:
            self.known[key] = paths.groups(folders)
        return self.known[key]

    def option_problems(self, override: Override, folders: list[Path]) -> list[Problem]:
        key = (str(override.input_line), tuple(folders))
        if key not in self.options:
            self.options[key] = option_problems(override, self.groups(folders), folders)
        return self.options[key]

    def load(self, lines: list[str], folders: list[Path], problems: list[Problem]) -> tuple[DictConfig, set[str]]:
        key = tuple(lines)
        if key not in self.loaded:
            before = len(problems)
            for line in lines:
                override = parse_one(line)
                check_file(override.key_or_group, override.value(), folders)
            cfg, dropped = _load(self.configs, self.name, lines, folders, problems)
            for choice, option in cfg.hydra.runtime.choices.items():
                check_file(str(choice).partition("@")[0], option, folders)
            if dropped or len(problems) > before:
                return cfg, dropped
            self.loaded[key] = cfg
        return copy.deepcopy(self.loaded[key]), set()


def _compose(shared: _Shared, lines: list[str], multirun: bool) -> Composed:
    problems: list[Problem] = []
    parsed = parse(lines, shared.configs, problems)
    folders = [*shared.folders, *extra_folders(parsed)]
    known = shared.groups(folders)
    group_lines, value_overrides, kept = [], [], []
    doubtful: set[str] = set()
    for override in parsed:
        line = str(override.input_line)
        if override.key_or_group in ADDED and not override.is_add() and not override.is_delete():
            override = parse_one(f"+{line.lstrip('+')}")
            line = str(override.input_line)
        if override.is_sweep_override() and not multirun and not is_hydra(override):
            problems.append(sweep_problem(line))
            doubtful.add(_section(override))
            continue
        found = shared.option_problems(override, folders)
        if found:
            problems += found
            doubtful.add(_section(override))
            continue
        if override.is_sweep_override() and not sweep_values(override):
            kept.append(line)  # interval() has no first value to compose with; the caller says what it means
            continue
        if is_hydra(override) or override.key_or_group in known or "@" in override.get_key_element():
            group_lines.append((line, first_value(override)))
        else:
            value_overrides.append((line, first_value(override)))
        kept.append(line)
    cfg, dropped = shared.load([first for _, first in group_lines], folders, problems)
    doubtful |= {_section(parse_one(line)) for line in dropped}
    kept = [line for line in kept if not any(line == whole and first in dropped for whole, first in group_lines)]
    for line, first in value_overrides:
        fitted = _apply(first, cfg, problems)
        kept = [(fitted + line.lstrip("+~") if fitted and entry == line else entry) for entry in kept]
    hydra = cfg.hydra
    choices = {
        str(k): str(v) for k, v in hydra.runtime.choices.items() if v is not None and not str(k).startswith("hydra")
    }
    return Composed(shared.name, cfg, hydra, choices, kept, folders, problems, doubtful)


def _section(override: Override) -> str:
    """Where the choice of an option goes: its package, else the group's own name."""
    return override.package or override.key_or_group


# ---- composition ---------------------------------------------------------------------------------------------------


def _load(
    configs: ConfigLoader, name: str, lines: list[str], folders: list[Path], problems: list[Problem]
) -> tuple[DictConfig, set[str]]:
    """Compose the choice of options; one that cannot be composed becomes a problem and is left out."""
    try:
        return _load_once(configs, name, lines), set()
    except Exception as error:
        first_error = error
    try:
        cfg = _load_once(configs, name, [])
    except Exception as error:
        raise UserError([*problems, explain(error, folders)]) from error
    accepted: list[str] = []
    dropped: set[str] = set()
    for line in lines:
        try:
            cfg = _load_once(configs, name, [*accepted, line])
            accepted.append(line)
        except Exception as error:
            dropped.add(line)
            problems.append(explain(error, folders, line, cfg))
    if not dropped:  # only the combination failed, in another order
        raise UserError([*problems, explain(first_error, folders)]) from first_error
    return cfg, dropped


def _load_once(configs: ConfigLoader, name: str, lines: list[str]) -> DictConfig:
    cfg = configs.load_configuration(config_name=name, overrides=list(lines), run_mode=RunMode.RUN)
    assert isinstance(cfg, DictConfig)
    return cfg


def _apply(line: str, cfg: DictConfig, problems: list[Problem]) -> str:
    """Apply one `key=value`; returns "++" where a key that is not in the YAML had to be added.

    A component may have keys that its YAML does not list, so an unknown key is added here; the check of signatures
    that follows knows all valid keys and rejects the others.
    """
    override = parse_one(line)
    key = override.key_or_group
    parent = "" if override.is_delete() else value_above(key, cfg)
    if parent:  # OmegaConf would replace the value by a mapping
        problems.append(
            Problem(f"unknown key '{key}': '{parent}' is a single value", f"set the value itself: {parent}=…")
        )
        return ""
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
        return ""
    except ConfigCompositionException as error:
        cause = error.__cause__
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        if plain and isinstance(cause, ConfigKeyError | ConfigAttributeError):
            try:
                ConfigLoaderImpl._apply_overrides_to_config([parse_one(f"++{line}")], cfg)
                return "++"
            except ConfigCompositionException as again:
                cause = again.__cause__ or again
        if override.is_delete():
            problems.append(Problem(f"there is no '{key}' to delete", near(key, cfg)))
        elif override.is_add() and cause is None:
            problems.append(Problem(f"'{key}' exists already", f"leave out the +: '{line.lstrip('+')}'"))
        else:
            problems.append(Problem(f"cannot set '{line}': {first_line(cause or error)}", near(key, cfg)))
    return ""


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The job's part of a composed configuration, sharing nothing with it."""
    job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    assert isinstance(job, DictConfig)
    return job
