"""From the command line of `runner tune` to a search: everything that can be wrong is said before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.cli import search_run
from runner.cli.arguments import HydraArguments
from runner.cli.output import print_notes
from runner.cli.points import Trials, check_points, without_tune
from runner.config import static
from runner.config.compose import Composed, compose
from runner.config.freeze import finalize
from runner.config.schema import TuneConfig
from runner.config.signature import affects_weights
from runner.errors import Problem, UserError
from runner.tuning.objective import Objective, read_objective
from runner.tuning.space import Space, read_space


def tune(name: str, request: HydraArguments, argv: list[str]) -> int:
    """Run the verb.

    Raises:
        UserError: everything that is wrong with the space, the settings and the configurations, before anything starts.
    """
    if request.multirun:
        raise UserError("runner tune takes no -m: its spaces are searched, not swept", see="runner tune --help")
    space, problems = read_space(request.overrides)
    composed = _compose(name, [*space.fixed, *space.first()], request, problems)
    settings = _settings(composed, problems)
    config = finalize(composed)
    print_notes(composed.notes)
    objective, found = read_objective(settings.objective, config)
    problems = [*found, *_check_settings(settings, space, objective, config)]
    if problems:
        raise UserError(problems)
    fixed = [line for line in space.fixed if not line.lstrip("+").startswith("tune.")]
    trials = Trials(name, request, fixed)
    check_points(space, trials)
    folder = _folder(config, settings, space, fixed)
    search = search_run.Asked(folder, space, objective, settings, trials, _plain(argv), config)
    if request.dry_run:
        return search_run.dry(search)
    return search_run.run(search)


def _compose(name: str, lines: list[str], request: HydraArguments, problems: list[Problem]) -> Composed:
    """Compose a point; what is wrong with the space is told together with what is wrong with the rest."""
    try:
        composed = compose(name, lines, request.config_dir)
    except UserError as error:
        raise UserError([*problems, *error.problems]) from error
    composed.problems[:0] = problems
    return composed


def _settings(composed: Composed, problems: list[Problem]) -> TuneConfig:
    """Take the section `tune` out of a composed configuration and check it.

    Raises:
        UserError: with everything else that is wrong, if the section is.
    """
    section: Any = OmegaConf.to_container(composed.config.tune, resolve=True)
    report = static.Report()
    if isinstance(section, dict):
        section = {**_defaults(), **section}
    static.check_section("tune", section, TuneConfig, report)
    without_tune(composed)
    found = [Problem(p.what, p.hint, p.see or "runner tune --help") for _, p in report.found]
    if found:
        composed.problems += found
        finalize(composed)  # raises all of them
    return TuneConfig(**section)


def _defaults() -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(TuneConfig())


def _check_settings(settings: TuneConfig, space: Space, objective: Objective, config: dict[str, Any]) -> list[Problem]:
    problems = []
    several = objective.count > 1
    trainer = config["trainer"]
    if settings.pruner != "none" and several:
        what = f"tune.pruner={settings.pruner} needs one number to compare, and tune.objective gives {objective.count}"
        problems.append(Problem(what, "leave the pruner out, or choose one: tune.objective=relative"))
    elif settings.pruner != "none" and (
        trainer["eval_every"] is None or (trainer["max_steps"] or trainer["eval_every"] + 1) <= trainer["eval_every"]
    ):
        what = f"tune.pruner={settings.pruner} compares validations on the way, and there is none before the end"
        problems.append(Problem(what, f"set trainer.eval_every below trainer.max_steps={trainer['max_steps']}"))
    if settings.sampler == "nsga2" and not several:
        problems.append(Problem("tune.sampler=nsga2 is for several numbers", "tune.objective=pareto, or sampler=tpe"))
    if settings.sampler == "grid" and space.size is None:
        endless = ", ".join(f"'{axis.key}={axis.spec}'" for axis in space.axes if axis.count is None)
        what = f"tune.sampler=grid needs finite spaces, and {endless} is not"
        problems.append(Problem(what, "give choices (a,b,c) or range(start,stop,step)"))
    asked = [line for line in space.fixed if line.lstrip("+").partition("=")[0] == "baseline"]
    if asked and asked[-1].partition("=")[2] not in ("null", "none", ""):
        what = f"'{asked[-1]}': runner tune compares trials with one another and trains no baselines"
        problems.append(Problem(what, "leave it out; give it to `runner train` with the best configuration"))
    if settings.driver == "slurm" and config["launch"]["scheduler"] != "slurm":
        what = "tune.driver=slurm submits the search, and its trials run on this machine"
        problems.append(Problem(what, "submit the trials as well: launch=slurm"))
    if settings.sampler != "grid" and settings.trials is not None and settings.trials < 2:
        problems.append(Problem(f"tune.trials={settings.trials} compares nothing", "give at least 2"))
    return problems


def _folder(config: dict[str, Any], settings: TuneConfig, space: Space, fixed: Sequence[str]) -> Path:
    """output_dir/tune/<name>-<hash8>: the same question comes back to the same folder, whatever its budget."""
    if settings.dir:
        return Path(settings.dir).expanduser().absolute()
    question = [
        config["name"],
        sorted(line for line in fixed if affects_weights(line.lstrip("+~").partition("=")[0])),
        sorted([axis.key, axis.spec] for axis in space.axes),
        [settings.objective, settings.sampler, settings.pruner, settings.startup, settings.seed],
    ]
    digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
    return Path(config["output_dir"]) / "tune" / f"{config['name']}-{digest}"


def _plain(argv: Sequence[str]) -> list[str]:
    """The command without what is about one call of it."""
    return [word for word in argv if word != "--dry-run"]
