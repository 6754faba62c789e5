"""What is wrong with a composition, in our words: Hydra's errors explained, and files that it leaves out silently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import paths
from runner.errors import Problem, UserError, first_line, suggest


def check_file(group: str, option: object, folders: Sequence[Path]) -> None:
    """Refuse a chosen YAML of the user's that is a list or a single value: Hydra may leave it out without a word.

    Raises:
        UserError: naming the file.
    """
    if not isinstance(option, str):
        return
    for folder in folders[:-1]:  # the last one is ours
        path = folder / group / f"{option.removesuffix('.yaml')}.yaml"
        if path.is_file():
            _check_mapping(path)
            return


def _check_mapping(path: Path) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # Hydra says where it breaks
    if root is not None and not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UserError(
            f"{path} is {kind}: a configuration is made of keys",
            "write 'key: value' lines, and the options it builds on below 'defaults:'",
        )


def value_above(key: str, cfg: DictConfig) -> str:
    """The part of a dotted key that is a single value, so that nothing can lie below it; "" where there is none."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        parent = ".".join(parts[:depth])
        node = OmegaConf.select(cfg, parent, throw_on_missing=False, throw_on_resolution_failure=False)
        if node is not None and not OmegaConf.is_config(node):
            return parent
    return ""


def near(key: str, cfg: DictConfig) -> str:
    """Suggestions among the keys beside a mistyped one."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    if not isinstance(node, DictConfig):
        return ""
    return suggest(leaf, [str(k) for k in node if k != "hydra"], limit=24)


def explain(error: BaseException, folders: Sequence[Path], line: str = "", cfg: DictConfig | None = None) -> Problem:
    """A composition error of Hydra in our words."""
    inside = f" (in {line})" if line else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        missing = str(error.missing_cfg_file).removesuffix(".yaml").lstrip("/")
        group, _, name = missing.rpartition("/")
        if not group:
            return Problem(f"there is no config '{missing}'{inside}")
        names = [o.name for o in paths.options(group, list(folders))] or list(error.options or [])
        inside = "" if line.startswith((f"{group}=", f"+{group}=")) else inside
        what = f"unknown option '{name}' in group '{group}'{inside}"
        return Problem(what, suggest(name, names), "" if group.startswith("hydra/") else f"runner ls {group}")
    text = [part.strip() for part in str(error).splitlines() if part.strip()]
    first = text[0] if text else first_line(error.__cause__ or error)
    if first.startswith("Could not override") and line and cfg is not None:
        return _misplaced(line, cfg)
    if "appears more than once" in first and line.startswith("+experiment="):
        return Problem(f"a second experiment is chosen{inside}", "one at a time; several jobs: -m +experiment=a,b")
    if isinstance(error.__cause__, OmegaConfBaseException):
        first = f"{first}: {first_line(error.__cause__)}" if first != first_line(error.__cause__) else first
    if type(error).__module__.startswith("yaml"):
        return Problem(f"a YAML file cannot be read{inside}: {' '.join(text)}", "check its indentation and quotes")
    hint = text[1] if len(text) > 1 and "HYDRA" not in text[1] else ""
    return Problem(f"cannot compose the configuration{inside}: {first}", hint)


def _misplaced(line: str, cfg: DictConfig) -> Problem:
    """A group that is chosen inside another one (`head`, `task`) was named without its place, or with a wrong one."""
    key, _, option = line.partition("=")
    group, _, package = key.partition("@")
    places = [str(k) for k in cfg.hydra.runtime.choices if str(k).startswith(f"{group}@")]
    if places:
        what = f"'{line}' does not say which {group}" if not package else f"there is no {group} at '{package}'"
        return Problem(what, f"choose one: {', '.join(f'{p}={option}' for p in sorted(places))}", f"runner ls {group}")
    if "." in key:
        return Problem(f"unknown key '{key}'", near(key, cfg))
    return Problem(f"'{group}' is not part of this configuration", f"add it with '+{line}'")
