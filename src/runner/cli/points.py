"""The points of a space as configurations: composed, checked before anything starts, and as commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from runner.cli.arguments import HydraArguments
from runner.config.compose import Composed, compose, without_hydra
from runner.config.freeze import finalize
from runner.errors import Problem, UserError
from runner.tuning.space import Space

CHECKED = 64
"""Combinations that are composed before anything starts; of larger spaces every value, and the ends of intervals."""


class Trials:
    """Configurations and commands of trials.

    Args:
        name: of the primary config.
        request: the command line.
        fixed: the overrides that all trials share, those of `tune` left out.
    """

    def __init__(self, name: str, request: HydraArguments, fixed: list[str]) -> None:
        self.name, self.request, self.fixed = name, request, fixed
        # The test split stays untouched until a configuration has been chosen.
        given = any(line.lstrip("+").startswith("trainer.final_split=") for line in fixed)
        self.more = [] if given else ["trainer.final_split=validation"]

    def compose(self, overrides: list[str]) -> dict[str, Any]:
        """A trial's frozen configuration.

        Raises:
            UserError: with every problem.
        """
        composed = compose(self.name, [*self.fixed, *overrides, *self.more], self.request.config_dir)
        if "tune" in composed.config:
            without_tune(composed)
        return finalize(composed)

    def argv(self, overrides: Sequence[str]) -> list[str]:
        """The command that runs a trial by itself."""
        return [*self.command(overrides), *self.more]

    def command(self, overrides: Sequence[str]) -> list[str]:
        """The command that trains a configuration, with everything that `runner train` evaluates at its end."""
        where = ["--config-dir", self.request.config_dir] if self.request.config_dir else []
        return ["train", *self.fixed, *overrides, *where]


def check_points(space: Space, trials: Trials) -> None:
    """Compose what shows every value of the space.

    Raises:
        UserError: with every problem of every point.
    """
    problems: dict[Problem, list[str]] = {}
    for point in space.corners(CHECKED):
        try:
            trials.compose(point)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, point)
    if problems:
        raise UserError(
            [
                problem
                if any(line in problem.what for line in point)
                else Problem(f"{problem.what} (with {' '.join(point)})", problem.hint, problem.see)
                for problem, point in problems.items()
            ]
        )


def without_tune(composed: Composed) -> None:
    """What is left is a configuration of `runner train`; it trains no baselines, because nothing here reads them."""
    node = without_hydra(composed.config)
    with_hydra = composed.config.copy()
    OmegaConf.set_struct(with_hydra, False)
    if "tune" in node:
        with_hydra.pop("tune")
    with_hydra.baseline = None
    composed.config = with_hydra
