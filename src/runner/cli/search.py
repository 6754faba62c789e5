"""From the command line of `runner tune` to a search, and from a search to its last words."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.cli.arguments import HydraArguments
from runner.cli.output import print_table
from runner.cli.points import Trials, check_points, without_tune
from runner.config import static
from runner.config.compose import Composed, compose
from runner.config.freeze import finalize
from runner.config.schema import TuneConfig
from runner.config.signature import affects_weights
from runner.errors import EXIT_DONE, Problem, UserError
from runner.files import read_json, write_json
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
    objective, found = read_objective(settings.objective, config)
    problems = [*found, *_check_settings(settings, space, objective, config)]
    if problems:
        raise UserError(problems)
    fixed = [line for line in space.fixed if not line.lstrip("+").startswith("tune.")]
    trials = Trials(name, request, fixed)
    check_points(space, trials)
    folder = _folder(config, settings, space, fixed)
    if request.dry_run:
        return _dry(folder, space, objective, settings)
    return _search(folder, space, objective, settings, trials, argv, config)


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
    if config["launch"]["scheduler"] != "local":
        what = "runner tune runs its trials on this machine, not through a queue: launch=slurm is not for it"
        hint = "run it inside one allocation (salloc, sbatch) with launch=local launch.jobs=N; killed, it goes on"
        problems.append(Problem(what, hint))
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


def _describe(space: Space, objective: Objective, settings: TuneConfig) -> list[str]:
    size = "endless" if space.size is None else f"{space.size} points"
    lines = [f"space      {size}", *(f"           {axis.key} = {axis.spec}" for axis in space.axes)]
    wanted = ", ".join(objective.names)
    pruner = "" if settings.pruner == "none" else f", pruned by {settings.pruner}"
    return [*lines, f"objective  {wanted} on the validation split", f"sampler    {settings.sampler}{pruner}"]


def _dry(folder: Path, space: Space, objective: Objective, settings: TuneConfig) -> int:
    print("\n".join([*_describe(space, objective, settings), f"folder     {folder}"]))
    return EXIT_DONE


def _search(
    folder: Path,
    space: Space,
    objective: Objective,
    settings: TuneConfig,
    trials: Trials,
    argv: list[str],
    config: dict[str, Any],
) -> int:
    from runner.launching.pool import Pool
    from runner.launching.schedule import may_start
    from runner.launching.signals import quiet_signals
    from runner.tuning.search import Search
    from runner.tuning.study import hold, make_pruner, open_study
    from runner.tuning.summary import summarise, write_sweep

    with hold(folder):
        _refuse_other(folder, space, objective)
        study = open_study(folder, folder.name, objective.count, make_pruner(settings.pruner, settings.startup, config))
        launch = config["launch"]
        pool = Pool(launch["jobs"], gpus_per_job=launch["gpus_per_job"], ready=may_start)

        def keep() -> None:
            write_sweep(folder, study, space, objective, settings, argv, str(config["name"]), search.runs.needs())
            write_json(folder / "tune.json", summarise(study, objective, search.elapsed_s))

        before = read_json(folder / "tune.json") if (folder / "tune.json").is_file() else {}
        search = Search(
            folder,
            study,
            space,
            objective,
            settings,
            compose=trials.compose,
            argv=trials.argv,
            pool=pool,
            tell=lambda text: print(text, flush=True),
            keep=keep,
            jobs=launch["jobs"],
            keep_going=launch["keep_going"],
            spent_s=float(before.get("elapsed_s", 0.0)),
        )
        there = search.runs_made()
        print("\n".join(_describe(space, objective, settings)))
        print(f"folder     {folder}" + (f" ({there} trials are there)" if there else ""), flush=True)
        keep()
        with quiet_signals() as stops:
            code = search.run(stops)
        _last_words(folder, search, trials)
        if search.trouble:
            print(f"error: {search.trouble}\n  see: runner status {folder}", file=sys.stderr)
        return code


def _refuse_other(folder: Path, space: Space, objective: Objective) -> None:
    """A pinned folder that holds another search is left alone."""
    path = folder / "sweep.json"
    if not path.is_file():
        return
    before = read_json(path)
    if before.get("verb") != "tune":
        raise UserError(f"'{folder}' holds a sweep, not a search", "choose another folder with tune.dir=DIR")
    axes = {axis.key: list(axis.choices) or [axis.spec] for axis in space.axes}
    wanted = len((before.get("tune") or {}).get("objective") or objective.names)
    if before.get("axes") != axes or wanted != objective.count:
        held = ", ".join(f"{key}={','.join(values)}" for key, values in (before.get("axes") or {}).items())
        raise UserError(
            f"'{folder}' holds another search: {held}",
            "choose another folder with tune.dir=DIR",
            f"runner status {folder}",
        )


def _last_words(folder: Path, search: Any, trials: Trials) -> None:
    """Tables, pictures and commands."""
    from runner.tuning.plots import write_plots
    from runner.tuning.summary import best_trials, command, counts, importances, own, summarise, table

    study, objective = search.study, search.objective
    every = search.trials()
    print(f"\ntrials: {counts(every)}, in {search.elapsed_s / 60:.1f} minutes")
    for trial in every:
        if trial.state.name == "FAIL" and trial.user_attrs.get("directory"):
            print(f"  trial {trial.number} failed: {trial.user_attrs.get('message', '')}")
    if own(every):
        several = objective.count > 1
        print()
        print_table(*table(study, objective, search.space), title="on the front: *" if several else "the best trials")
        shares = importances(study)
        write_json(folder / "tune.json", summarise(study, objective, search.elapsed_s, shares))
        if shares:
            print()
            print_table(["importance", "share"], [[key, f"{share:.2f}"] for key, share in shares.items()])
        for path in write_plots(folder, study, objective, shares):
            print(f"plot    {_short(path)}")
        for trial in best_trials(study):
            which = f"trial {trial.number}" if several else f"the best, trial {trial.number}"
            print(f"\n{which}: {' '.join(trial.user_attrs['overrides'])}")
            print(f"  test    {command(['eval', _short(folder / trial.user_attrs['directory']), 'split=test'])}")
            print(f"  train   {command(trials.command(trial.user_attrs['overrides']))}")
    if search.stopping or search.left:
        print("\nstopped: the same command goes on with it")
    elif search.runs_made() < search.budget and search.settings.hours:
        print(f"\ntune.hours={search.settings.hours:g} is spent: the same command with more goes on")


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
