"""Search spaces in Hydra's sweep syntax: `a,b,c`, `choice(…)`, `range(…)`, `interval(…)`, `int(…)`, `tag(log, …)`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
)
from hydra.errors import HydraException

from runner.config import paths
from runner.config.overrides import is_hydra, parse_one
from runner.config.signature import affects_weights
from runner.errors import Problem

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 5
"""Significant digits of a value that is drawn from an interval: a command should be readable."""


@dataclass(frozen=True)
class Axis:
    """One hyperparameter.

    Attributes:
        key: as it is written left of the `=`, a leading + included.
        spec: what was written right of it.
        kind: "choice", or numbers: "range" (equally spaced), "int" and "float" (an interval).
        choices: texts of the values of a choice or a range.
        low, high: of numbers, both included.
        log: whether numbers are drawn evenly in their logarithm.
        step: of a range.
    """

    key: str
    spec: str
    kind: Literal["choice", "range", "int", "float"]
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float = 1.0

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are not counted."""
        if self.kind == "int":
            return int(self.high - self.low) + 1
        return len(self.choices) if self.choices else None

    @property
    def examples(self) -> list[str]:
        """Values that show whether the axis is right: all of a choice, the ends of an interval."""
        if self.choices:
            return list(self.choices)
        return [self.text(self.low), self.text(self.high)]

    def distribution(self) -> BaseDistribution:
        """In Optuna's terms."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution(self.choices)
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        if self.kind == "range":
            if all(float(c).is_integer() for c in (self.low, self.high, self.step)):
                return IntDistribution(int(self.low), int(self.high), step=int(self.step))
            return FloatDistribution(self.low, self.high, step=self.step)
        return FloatDistribution(self.low, self.high, log=self.log)

    def text(self, value: Any) -> str:
        """Optuna's value as it stands in an override."""
        if self.kind == "choice":
            return str(value)
        if self.kind == "range":
            return min(self.choices, key=lambda text: abs(float(text) - float(value)))
        if self.kind == "int":
            return str(round(value))
        rounded = float(f"{float(value):.{DIGITS}g}")
        return repr(min(max(rounded, self.low), self.high))

    def value(self, text: str) -> Any:
        """Inverse of `text`, for values of a choice or a range."""
        if self.kind == "choice":
            return text
        return float(text) if not float(text).is_integer() or self.kind == "float" else int(float(text))


@dataclass(frozen=True)
class Space:
    """All hyperparameters of a search, and the overrides that every trial shares."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    @property
    def size(self) -> int | None:
        """How many points there are; None where they are not counted."""
        counts = [axis.count for axis in self.axes]
        return None if any(c is None for c in counts) else math.prod(c for c in counts if c is not None)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Key → distribution."""
        return {axis.key: axis.distribution() for axis in self.axes}

    def overrides(self, parameters: Mapping[str, Any]) -> list[str]:
        """A trial's own overrides."""
        return [f"{axis.key}={axis.text(parameters[axis.key])}" for axis in self.axes]

    def first(self) -> list[str]:
        """A point to begin with: the first value of everything."""
        return [f"{axis.key}={axis.examples[0]}" for axis in self.axes]

    def corners(self, limit: int) -> Iterator[list[str]]:
        """Points that together show every value and, as far as `limit` allows, every combination of values."""
        points = product(*(axis.examples for axis in self.axes))
        if math.prod(len(axis.examples) for axis in self.axes) <= limit:
            yield from ([f"{a.key}={v}" for a, v in zip(self.axes, point, strict=True)] for point in points)
            return
        start = self.first()
        yield start
        for i, axis in enumerate(self.axes):
            for text in axis.examples[1:]:
                yield [*start[:i], f"{axis.key}={text}", *start[i + 1 :]]

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, the last axis fastest."""
        values = [
            [axis.value(text) for text in axis.choices]
            if axis.choices
            else list(range(int(axis.low), int(axis.high) + 1))
            for axis in self.axes
        ]
        keys = [axis.key for axis in self.axes]
        for point in product(*values):
            yield dict(zip(keys, point, strict=True))


def read_space(lines: Sequence[str]) -> tuple[Space, list[Problem]]:
    """Sort overrides into search axes and fixed ones; lines that cannot be read stay among the fixed ones.

    Args:
        lines: of the command line, without those that set `tune.…`.
    """
    axes: dict[str, Axis] = {}
    fixed: list[str] = []
    problems: list[Problem] = []
    for line in lines:
        try:
            override = parse_one(line)
        except HydraException:
            fixed.append(line)  # composing says what is wrong with it
            continue
        if not override.is_sweep_override() or is_hydra(override):
            fixed.append(line)
            continue
        key = override.get_key_element()
        if key in axes:
            problems.append(Problem(f"'{key}' is given two search spaces", "leave one of them out"))
            continue
        found = read_axis(override, problems)
        if found is not None:
            axes[key] = found
    if not axes and not problems:
        problems.append(
            Problem(
                "there is nothing to tune: every key has one value",
                "give some a space: 'optimizer.lr=tag(log,interval(1e-5,1e-2))' or weighting=equal,pcgrad",
                "runner tune --help",
            )
        )
    return Space(tuple(axes.values()), tuple(fixed)), problems


def read_axis(override: Override, problems: list[Problem]) -> Axis | None:
    """One override with several values; what is wrong with it goes to `problems`."""
    line = str(override.input_line)
    key, _, spec = line.partition("=")
    sweep: Any = override.value()
    plain = key.lstrip("+")
    bad = len(problems)
    if plain.partition(".")[0] == "seed":
        problems.append(
            Problem(
                f"'{line}': the seed is not a hyperparameter: the best of several is luck",
                "fix it; to see the spread, run the best configuration with -m seed=0,1,2",
            )
        )
    elif not affects_weights(plain):
        problems.append(Problem(f"'{line}': '{plain}' does not affect what is learned, so all trials would be equal"))
    tags = set(getattr(sweep, "tags", ()) or ())
    if unknown := tags - {"log"}:
        problems.append(Problem(f"'{line}': unknown tag '{sorted(unknown)[0]}'", "valid: log"))
    elif tags and not isinstance(sweep, IntervalSweep):
        problems.append(Problem(f"'{line}': the tag log goes with interval(…)", f"{key}=tag(log,interval(1e-5,1e-2))"))
    axis = None
    if isinstance(sweep, IntervalSweep):
        axis = _interval(key, spec, sweep, "log" in tags, line, problems)
    elif isinstance(sweep, RangeSweep):
        axis = _range(key, spec, sweep, list(override.sweep_string_iterator()), line, problems)
    elif isinstance(sweep, Glob):
        names = sweep.filter([option.name for option in paths.options(override.key_or_group)])
        axis = _choice(key, spec, names, line, problems)
    elif isinstance(sweep, ChoiceSweep):
        axis = _choice(key, spec, list(override.sweep_string_iterator()), line, problems)
    return axis if len(problems) == bad else None


def _interval(key: str, spec: str, sweep: IntervalSweep, log: bool, line: str, problems: list[Problem]) -> Axis | None:
    low, high = sweep.start, sweep.end
    if low is None or high is None or not all(map(math.isfinite, (low, high))) or not low < high:
        problems.append(Problem(f"'{line}': an interval goes from a smaller to a larger number"))
        return None
    if log and low <= 0:
        hint = "begin above 0, or leave the tag out"
        problems.append(Problem(f"'{line}': a logarithmic interval cannot begin at {low:g}", hint))
        return None
    whole = isinstance(low, int) and isinstance(high, int)
    return Axis(key, spec, "int" if whole else "float", low=low, high=high, log=log)


def _range(key: str, spec: str, sweep: RangeSweep, texts: list[str], line: str, problems: list[Problem]) -> Axis | None:
    if len(texts) < 2:
        many = "no value" if not texts else "a single value"
        problems.append(Problem(f"'{line}' has {many}", "range(start,stop,step) leaves stop out"))
        return None
    numbers = sorted(map(float, texts))
    texts.sort(key=float)
    return Axis(key, spec, "range", tuple(texts), numbers[0], numbers[-1], step=abs(float(sweep.step)))


def _choice(key: str, spec: str, texts: list[str], line: str, problems: list[Problem]) -> Axis | None:
    if len(texts) < 2:
        many = "no value" if not texts else "a single value"
        problems.append(Problem(f"'{line}' has {many}", "give several, or leave the choice out"))
        return None
    twice = sorted({t for t in texts if texts.count(t) > 1})
    if twice:
        problems.append(Problem(f"'{line}' names {twice[0]} twice", "name each value once"))
        return None
    return Axis(key, spec, "choice", tuple(texts))
