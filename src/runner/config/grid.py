"""The jobs of a sweep: Hydra's sweep syntax expanded, every point composed and checked before anything starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from runner.config.compose import ADDED, Composed, composer, loader
from runner.config.freeze import finalize
from runner.config.overrides import is_hydra, parse
from runner.config.preflight import check_data
from runner.config.signature import affects_weights
from runner.errors import Problem, UserError

COMPARISONS = ("weighting", "architecture", "adapter", "merge", "sampler", "wrapper")
"""A sweep over one of these groups compares methods: it asks for Δm, and so for baselines."""

OURS = {
    "hydra/launcher": "launch.jobs=2 for several jobs at a time, launch=slurm for a cluster",
    "hydra/sweeper": "the runner makes the grid itself; `runner tune` searches",
    "hydra.launcher": "launch.jobs=2 for several jobs at a time, launch=slurm for a cluster",
    "hydra.sweeper": "only hydra.sweeper.params is read",
    "hydra.sweep": "sweep_dir=DIR chooses the directory of a sweep",
    "hydra.run": "run_dir=DIR chooses the directory of a run",
}
"""Settings of Hydra's own launchers and sweepers, which do not run here, and what to use instead."""


@dataclass
class Point:
    """One job of a sweep.

    Attributes:
        overrides: the whole command line of the job.
        varied: the part of it that differs between jobs, in the order of the axes.
        config: its frozen configuration.
    """

    overrides: list[str]
    varied: list[str]
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class Grid:
    """A sweep before it has a directory.

    Attributes:
        name: of the primary config.
        axes: key → the values it takes, as written in an override.
        fixed: the overrides that all jobs share.
        points: the product of the axes, the last one fastest.
        hydra: overrides of Hydra's own part, which are composed with every point.
        notes: what to tell the user once the points are checked.
    """

    name: str
    axes: dict[str, list[str]]
    fixed: list[str]
    points: list[Point]
    hydra: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def compares(self) -> bool:
        """Whether methods are compared, so that Δm is wanted."""
        return any(key.lstrip("+").partition("@")[0] in COMPARISONS for key in self.axes)

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep and no other: name, shared overrides that affect weights, names of the axes.

        Not the values of the axes: a sweep that is given more of them goes on in its directory.
        """
        shared = {line.lstrip("+") for line in self.fixed if affects_weights(line.lstrip("+~").partition("=")[0])}
        return [self.name, *sorted(shared), "axes", *sorted(key.lstrip("+") for key in self.axes)]


def expand(composed: Composed) -> Grid:
    """The points of a multirun: `hydra.sweeper.params` and the command line, whose values win.

    Args:
        composed: with the first value of every axis.

    Raises:
        UserError: values that cannot be listed, or settings of Hydra's launchers.
    """
    problems: list[Problem] = []
    chosen: dict[str, tuple[str, list[str], bool]] = {}
    hydra: list[str] = []
    with loader(composed.folders, composed.name) as configs:
        for override in parse([*_params(composed), *composed.overrides], configs, problems):
            if is_hydra(override):
                _take_hydra(override, hydra, problems)
                continue
            key = override.get_key_element()
            if override.key_or_group in ADDED and not key.startswith(("+", "~")):
                key = f"+{key}"
            name = key.lstrip("+~")
            chosen.pop(name, None)  # the command line's values win, and stand where they were written
            chosen[name] = (key, _values(override, problems), override.is_sweep_override())
    if problems:
        raise UserError(problems)
    axes: dict[str, list[str]] = {}
    fixed: list[str] = []
    options: list[list[str]] = []
    for key, values, swept in chosen.values():
        lines = [key if key.startswith("~") and not value else f"{key}={value}" for value in values]
        if swept:
            axes[key] = values
        else:
            fixed += lines
        options.append(lines)
    swept_keys = tuple(f"{key}=" for key in axes)
    points = [
        Point(list(job), [line for line in job if line.startswith(swept_keys)]) for job in itertools.product(*options)
    ]
    return Grid(composed.name, axes, fixed, points, hydra)


def _values(override: Override, problems: list[Problem]) -> list[str]:
    """The values of an override as text, each once."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line.partition("=")[2]]
    key = override.key_or_group
    if not override.is_discrete_sweep():
        what = f"'{line}' is a range without steps, which a sweep cannot go through"
        problems.append(Problem(what, f"list values ({key}=…,…), or let `runner tune` search the range"))
        return []
    try:
        values = list(dict.fromkeys(override.sweep_string_iterator()))
    except HydraException as error:
        problems.append(Problem(f"cannot list the values of '{line}': {error}"))
        return []
    if not values:
        problems.append(Problem(f"'{line}' gives no value", "widen the range or the pattern"))
    return values


def _params(composed: Composed) -> list[str]:
    """`hydra.sweeper.params` of the chosen YAML files as overrides; a YAML list is a list of values."""
    given = composed.hydra.sweeper.get("params")
    params: Any = OmegaConf.to_container(given) if given is not None else {}
    lines = []
    for key, value in params.items():
        if isinstance(value, list):
            value = ",".join(map(_text, value))
        lines.append(f"{key}={_text(value)}")
    return lines


def _text(value: Any) -> str:
    """A YAML value as an override writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_text(v)}" for k, v in value.items()) + "}"
    return str(value)


def _take_hydra(override: Override, kept: list[str], problems: list[Problem]) -> None:
    key = override.key_or_group
    if key == "hydra.mode" or key.startswith("hydra.sweeper.params"):
        return
    for prefix, hint in OURS.items():
        if key == prefix or key.startswith((f"{prefix}.", f"{prefix}/")):
            problems.append(Problem(f"'{override.input_line}' has no effect on a sweep", hint))
            return
    kept.append(str(override.input_line))


# ---- composing every point -------------------------------------------------------------------------------------------


def check(grid: Grid, config_dir: str | None, tell: Callable[[int], None] = lambda done: None) -> None:
    """Compose, check and freeze every point.

    Args:
        grid: its points get their configurations.
        config_dir: the user's own folder.
        tell: is called with the number of points that are done.

    Raises:
        UserError: every problem of every point, each told once.
    """
    found: dict[Problem, list[int]] = {}
    data: dict[str, list[Problem]] = {}  # most jobs read the same data, which is looked at once
    with composer(grid.name, config_dir) as compose:
        for number, point in enumerate(grid.points):
            try:
                composed = compose([*grid.hydra, *point.overrides], False)
                _as_job(composed, number)
                point.config = finalize(composed, data=False)
                grid.notes += [note for note in composed.notes if note not in grid.notes]
                reads = json.dumps([point.config["mixture"], point.config["data_root"]], sort_keys=True)
                if reads not in data:
                    data[reads] = check_data(point.config)
                if data[reads]:
                    raise UserError(data[reads])
            except UserError as error:
                for problem in dict.fromkeys(error.problems):
                    found.setdefault(problem, []).append(number)
            tell(number + 1)
    if found:
        raise UserError([_of_jobs(problem, numbers, grid.points) for problem, numbers in found.items()])


def _as_job(composed: Composed, number: int) -> None:
    """What `${hydra:job.num}` and its like say in a job."""
    with open_dict(composed.config.hydra):
        composed.config.hydra.job.num = number
        composed.config.hydra.job.id = f"job_{number}"
        composed.config.hydra.overrides.task = [line for line in composed.overrides if not line.startswith("hydra")]


def _of_jobs(problem: Problem, numbers: Sequence[int], points: Sequence[Point]) -> Problem:
    """A problem that only some jobs have says which."""
    if len(numbers) == len(points):
        return problem
    first = " ".join(points[numbers[0]].varied)
    others = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
    return Problem(f"{problem.what} (job {numbers[0]}{others}: {first})", problem.hint, problem.see)
