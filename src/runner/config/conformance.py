"""Checking every option of every group, for `runner validate --all` and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from runner.config import paths, plugins, schema, static
from runner.config.compose import compose
from runner.config.freeze import finalize, resolve
from runner.config.grid import check, expand
from runner.errors import Problem, UserError

PROBE = "probe"
"""Where an option of a group without a place of its own (task, head) is put to be looked at."""


def validate_all(config_dir: str | None = None, overrides: Sequence[str] = ()) -> dict[str, list[Problem]]:
    """`group/option` → what is wrong with it, for every option there is.

    Args:
        config_dir: the user's own folder.
        overrides: applied to every composition, such as `plugins=[mine]`.

    Raises:
        UserError: the configuration without any choice is already wrong.
    """
    folders = paths.roots(config_dir)
    base = compose("train", overrides, config_dir)
    if base.problems:  # then every option would repeat them
        raise UserError(base.problems)
    return {
        option.key: validate_option(option, config_dir, overrides)
        for group in paths.groups(folders)
        for option in paths.options(group, folders)
    }


def validate_option(
    option: paths.Option, config_dir: str | None = None, overrides: Sequence[str] = ()
) -> list[Problem]:
    """What is wrong with one option.

    An experiment must be complete, and so must every job of a sweep. Any other option may leave `???` to whoever uses
    it, and need not fit the defaults of the other groups.
    """
    try:
        if option.group == "experiment":
            finalize(compose("train", [f"+experiment={option.name}", *overrides], config_dir), data=False)
            return []
        if option.group == "sweep":
            check(
                expand(compose("train", [f"+sweep={option.name}", *overrides], config_dir, multirun=True)), config_dir
            )
            return []
        return _section(option, config_dir, overrides)
    except UserError as error:
        return error.problems


def _section(option: paths.Option, config_dir: str | None, overrides: Sequence[str]) -> list[Problem]:
    own = option.group in schema.COMPONENTS or option.group in schema.SECTIONS
    place = option.group if own else PROBE
    override = f"{place}={option.name}" if own else f"+{option.group}@{PROBE}={option.name}"
    composed = compose("train", [override, *overrides], config_dir)
    report = static.Report(allow_missing=True)
    config = resolve(composed, report)
    report.found += [(place, problem) for problem in plugins.register(config.get("plugins") or [])]
    if option.group in schema.SECTIONS:
        static.check_section(place, config.get(place), schema.SECTIONS[option.group], report)
    else:
        optional = option.group in schema.OPTIONAL_COMPONENTS
        static.check_component(place, config.get(place), report, optional=optional)
    own_problems = [problem for path, problem in report.found if path == place or path.startswith(f"{place}.")]
    return [*composed.problems, *own_problems]
