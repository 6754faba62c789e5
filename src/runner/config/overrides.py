"""Overrides one by one: their syntax, their group and option, the jobs that several values make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from runner.config import paths
from runner.errors import Problem, UserError, suggest


def parse(lines: list[str], configs: ConfigLoader, problems: list[Problem]) -> list[Override]:
    """Read every override; those that cannot be read become problems."""
    parser = OverridesParser.create(config_loader=configs)
    parsed = []
    for line in lines:
        if line.startswith("="):  # Hydra takes it for a key without a name
            problems.append(_syntax_problem(line))
            continue
        key, tilde, rest = line.partition("=~/")
        try:  # the grammar does not take a home folder that the shell has left alone
            parsed.append(parser.parse_override(f"{key}='~/{rest}'" if tilde else line))
        except HydraException:  # OverrideParseException, or a wrong use of choice(), range(), …
            problems.append(_syntax_problem(line))
    for override in parsed:
        override.config_loader = configs  # of glob()
    return parsed


def parse_one(line: str) -> Override:
    """Read an override that is known to be well formed."""
    return OverridesParser.create().parse_override(line)


def _syntax_problem(line: str) -> Problem:
    """Words for an override that cannot be read."""
    what = f"cannot read the override '{line}'"
    if "=" not in line and not line.startswith("~"):
        holders = [f"{group}={line}" for group in paths.groups() for o in paths.options(group) if o.name == line]
        if holders:
            return Problem(what, f"did you mean '{holders[0]}'?   overrides are written key=value")
        return Problem(what, "overrides are written key=value, such as seed=1 or optimizer.lr=0.001")
    key, _, value = line.partition("=")
    if not key.strip("+~ "):
        return Problem(what, "the key before '=' is missing: overrides are written key=value")
    if key != key.strip() or " " in key:
        return Problem(what, f"no spaces around '=': '{key.strip()}={value.strip()}'")
    if value.startswith("="):
        return Problem(what, f"one '=' is enough: '{key}={value.lstrip('=')}'")
    for opening, closing in ("[]", "{}", "()"):
        if value.count(opening) != value.count(closing):
            return Problem(
                what, f"'{opening}' and '{closing}' do not match; quote the whole for the shell: '{key}=[a,b]'"
            )
    if value.count("'") % 2 or value.count('"') % 2:
        return Problem(what, "a quotation mark is not closed")
    return Problem(what, f"quote text with special characters twice: '{key}=\"{value}\"'")


def sweep_problem(line: str) -> Problem:
    """Words for several values without -m."""
    key, _, value = line.partition("=")
    listed = "" if "(" in value else f", or a list with '{key}=[{value}]'"
    return Problem(f"'{line}' gives '{key.lstrip('+')}' several values", f"run one job for each with -m{listed}")


def is_hydra(override: Override) -> bool:
    """Whether it is about Hydra's own part of the configuration."""
    return override.key_or_group == "hydra" or override.key_or_group.startswith(("hydra.", "hydra/"))


def extra_folders(parsed: list[Override]) -> list[Path]:
    """Folders that `hydra.searchpath=[…]` adds."""
    values = [o.value() for o in parsed if o.key_or_group == "hydra.searchpath"]
    entries = [str(e) for v in values if isinstance(v, list) for e in v]
    folders = []
    for entry in entries:
        if "://" in entry and not entry.startswith("file://"):
            continue  # pkg://…: Hydra itself looks there
        folder = Path(entry.removeprefix("file://")).resolve()
        if not folder.is_dir():
            raise UserError(f"hydra.searchpath: there is no folder '{entry}'", "write file:///absolute/path")
        folders.append(folder)
    return folders


def option_problems(override: Override, known: list[str], folders: list[Path]) -> list[Problem]:
    """Unknown groups and unknown options of known groups."""
    group = override.key_or_group
    if is_hydra(override):
        return []
    if "/" in group or ("@" in override.get_key_element() and group not in known):
        dotted = group.replace("/", ".")
        hint = suggest(group, known, limit=20)
        if "/" not in group:
            return [Problem(f"unknown group '{group}'", hint, "runner ls")]
        return [Problem(f"unknown group '{group}'", f"{hint}; keys inside a section are written with dots: {dotted}=…")]
    if group not in known or override.is_delete():
        return []
    names = [o.name for o in paths.options(group, folders)]
    values: list[Any]
    value: Any
    if override.is_sweep_override():
        values = [v.strip("'\"") for v in override.sweep_string_iterator()] if override.is_discrete_sweep() else []
    else:
        value = override.value()
        values = [str(v) for v in value] if isinstance(value, list) else [value]
    found = []
    for value in values:
        if value is None and group in names:
            continue
        if isinstance(value, dict):
            example = next(iter(value), "key")
            hint = f"choose an option ({group}=OPTION) and set its keys one by one: {group}.{example}=…"
            found.append(Problem(f"'{group}' is a group: it takes the name of an option, not a mapping", hint))
        elif str(value).removesuffix(".yaml") not in names:
            shown = "null" if value is None else value
            problem = Problem(
                f"unknown option '{shown}' in group '{group}'", suggest(str(shown), names), f"runner ls {group}"
            )
            found.append(problem)
    return found


def sweep_values(override: Override) -> list[str]:
    """The values of a sweep as text; none of an interval, nor of an empty range."""
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []


def first_value(override: Override) -> str:
    """The override with the first value of a sweep, or as it is."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
    return str(override.input_line)
