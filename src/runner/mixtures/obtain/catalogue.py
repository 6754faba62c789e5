"""The data sets there are: the options of configs/mixture that read data, as they stand or with changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runner.config import paths
from runner.config.build import build
from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Mixture
from runner.mixtures.from_sources import FromSources
from runner.mixtures.locate import locate
from runner.mixtures.published import Preparable


@dataclass
class Entry:
    """One data set.

    Attributes:
        option: its file in configs/mixture, whose comments say what it is, its licence and its size.
        mixture: made of the option as it stands.
        problems: what is wrong with it; nothing where it is there.
    """

    option: paths.Option
    mixture: Mixture
    problems: list[Problem]

    @property
    def places(self) -> list[Path]:
        """Where (parts of) it lie."""
        if isinstance(self.mixture, FromSources):
            given = [source.path for source in self.mixture.sources.values() if source.path is not None]
            found = [locate(path, self.mixture.data_root) for path in given]
        else:
            found = [getattr(self.mixture, "located", None)]
        return [place for place in found if place is not None]

    @property
    def state(self) -> str:
        """One of: there, prepared, parts (some of it is there), on the hub (it is read from there), missing."""
        if self.problems:
            return "parts" if self.places else "missing"
        if not self.places:
            return "on the hub"
        made = isinstance(self.mixture, Preparable) and self.mixture.converted
        return "prepared" if made and not isinstance(self.mixture, FromSources) else "there"


def names(folders: Sequence[Path] | None = None) -> list[str]:
    """Options that read data: those whose comments name its licence."""
    return [option.name for option in paths.options("mixture", folders) if "licence" in option.notes]


def catalogue(data_root: str, folders: Sequence[Path] | None = None) -> list[Entry]:
    """Every data set, as its option stands."""
    entries = []
    for option in paths.options("mixture", folders):
        if "licence" in option.notes:
            mixture = build(_as_it_stands(option, folders), data_root, where="mixture")
            entries.append(Entry(option, mixture, mixture.check()))
    return entries


def read_config(name: str, overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The mixture of a data set as its option stands, with changes to its keys.

    Args:
        overrides: such as mixture.path=DIR.

    Raises:
        UserError: no such data set, or everything that is wrong with the overrides.
    """
    folders = paths.roots(config_dir)
    known = names(folders)
    if name not in known:
        raise UserError(f"there is no data set '{name}'", suggest(name, known, limit=30), "runner data list")
    if not overrides:
        return _as_it_stands(paths.find(f"mixture/{name}", folders), folders)
    from omegaconf import OmegaConf

    from runner.config.compose import compose

    other = [line for line in overrides if not line.lstrip("+~").startswith(("mixture.", "task@"))]
    if other:
        raise UserError(f"'{other[0]}' is no key of the data", "such as mixture.path=DIR", "runner data --help")
    composed = compose("train", [f"mixture={name}", *overrides], config_dir)
    if composed.problems:
        raise UserError(composed.problems)
    config: Any = OmegaConf.to_container(composed.config.mixture, resolve=True)
    return dict(config)


def open_mixture(config: Mapping[str, Any], data_root: str) -> Mixture:
    """A mixture as `read_config` gives it, over the data below a root."""
    made: Mixture = build(config, data_root, where="mixture")
    return made


def _as_it_stands(option: paths.Option, folders: Sequence[Path] | None) -> dict[str, Any]:
    """An option's keys, with its tasks filled in from theirs: what Hydra makes of it, in a hundredth of the time."""
    content = _read(option.path)
    own: Mapping[str, Any] = content.get("tasks") or {}
    tasks: dict[str, Any] = {}
    for entry in content.get("defaults") or []:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            group, _, place = str(key).removeprefix("/").partition("@")
            if group == "task":
                name = place.removeprefix("tasks.")
                tasks[name] = _read(paths.find(f"task/{value}", folders).path) | (own.get(name) or {})
    return {k: v for k, v in content.items() if k not in ("defaults", "tasks")} | {"tasks": tasks}


def _read(path: Path) -> dict[str, Any]:
    loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return loaded if isinstance(loaded, dict) else {}
