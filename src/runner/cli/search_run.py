"""What `runner tune` does once all is checked: the search here, or a driver that is submitted; and its last words."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli.output import print_table
from runner.cli.points import Trials
from runner.config.schema import TuneConfig
from runner.errors import EXIT_DONE, UserError
from runner.files import read_json, write_atomic, write_json
from runner.tuning.objective import Objective
from runner.tuning.space import Space

if TYPE_CHECKING:
    import optuna

    from runner.launching.pool import Pool
    from runner.tuning.search import Search


@dataclass(frozen=True)
class Asked:
    """A search as it was asked for.

    Attributes:
        folder: where it lives. space, objective, settings: of it. trials: what composes them.
        argv: the command that goes on with it.
        config: of a trial, frozen.
    """

    folder: Path
    space: Space
    objective: Objective
    settings: TuneConfig
    trials: Trials
    argv: list[str]
    config: dict[str, Any]

    @property
    def launch(self) -> dict[str, Any]:
        """Where trials run."""
        return dict(self.config["launch"])

    @property
    def slurm(self) -> bool:
        """Whether Slurm runs them."""
        return self.launch["scheduler"] == "slurm"

    @property
    def budget(self) -> int:
        """How many runs the search may make; a finite space is never asked for more than it has."""
        size = self.space.size
        asked = self.settings.trials or (size if self.settings.sampler == "grid" else None) or 20
        return min(asked, size) if size is not None else asked

    @property
    def at_a_time(self) -> int:
        """Trials under way together; in the queue, unless said otherwise, as many as need not learn from others."""
        if not self.slurm:
            return int(self.launch["jobs"])
        alone = self.settings.sampler in ("grid", "random")
        return self.launch["slurm"]["max_parallel"] or (self.budget if alone else self.settings.startup)

    def describe(self) -> list[str]:
        """What is searched, and how."""
        size = "endless" if self.space.size is None else f"{self.space.size} points"
        lines = [f"space      {size}", *(f"           {axis.key} = {axis.spec}" for axis in self.space.axes)]
        wanted = ", ".join(self.objective.names)
        pruner = "" if self.settings.pruner == "none" else f", pruned by {self.settings.pruner}"
        lines += [f"objective  {wanted} on the validation split", f"sampler    {self.settings.sampler}{pruner}"]
        if self.slurm:
            lines.append(f"trials     {self.budget}, up to {self.at_a_time} in Slurm's queue at a time")
        return lines


def dry(asked: Asked) -> int:
    """Say what would be searched; with Slurm, write the scripts."""
    print("\n".join([*asked.describe(), f"folder     {asked.folder}"]))
    if not asked.slurm:
        return EXIT_DONE
    from runner.launching.slurm import write_scripts
    from runner.launching.slurm_queue import DRIVER_SCRIPT, SCRIPT
    from runner.launching.sweepdir import SweepDirectory

    place = SweepDirectory(asked.folder.absolute())
    write_scripts(place, asked.launch, range(min(asked.at_a_time, asked.budget)), [])
    shown = [SCRIPT]
    if asked.settings.driver == "slurm":
        _write_driver(asked)
        shown = [DRIVER_SCRIPT, SCRIPT]
    for name in shown:
        print(f"\n{place.path / name}:\n{(place.path / name).read_text(encoding='utf-8')}", end="")
    return EXIT_DONE


def run(asked: Asked) -> int:
    """Search; returns the exit code."""
    from runner.launching.slurm import DRIVER

    if asked.settings.driver == "slurm" and DRIVER not in os.environ:
        return _submit_driver(asked)
    from runner.launching.signals import quiet_signals
    from runner.launching.sweepdir import SweepDirectory
    from runner.tuning.study import hold

    place = SweepDirectory(asked.folder.absolute())
    with hold(asked.folder), place.attending():
        search = _prepare(asked)
        there = search.runs_made()
        print("\n".join(asked.describe()))
        print(f"folder     {asked.folder}" + (f" ({there} trials are there)" if there else ""), flush=True)
        search.keep()
        with quiet_signals() as stops:
            code = search.run(stops)
            if search.stopping and DRIVER in os.environ:
                _requeue_driver(stops)
        _last_words(asked, search)
        if search.trouble:
            print(f"error: {search.trouble}\n  see: runner status {asked.folder}", file=sys.stderr)
        return code


def _prepare(asked: Asked) -> Search:
    """The search, with everything that an earlier call has left."""
    from runner.tuning.search import Search
    from runner.tuning.study import make_pruner, open_study
    from runner.tuning.summary import summarise

    folder, objective, settings = asked.folder, asked.objective, asked.settings
    _refuse_other(folder, asked.space, objective)
    pruner = make_pruner(settings.pruner, settings.startup, asked.config)
    study = open_study(folder, folder.name, objective.count, pruner)

    def keep() -> None:
        _write_sweep(asked, study, search.runs.needs())
        write_json(folder / "tune.json", summarise(study, objective, search.elapsed_s))

    before = read_json(folder / "tune.json") if (folder / "tune.json").is_file() else {}
    search = Search(
        folder,
        study,
        asked.space,
        objective,
        settings,
        budget=asked.budget,
        compose=asked.trials.compose,
        argv=asked.trials.argv,
        pool=_pool(asked),
        tell=_tell,
        keep=keep,
        jobs=asked.at_a_time,
        keep_going=asked.launch["keep_going"],
        spent_s=float(before.get("elapsed_s", 0.0)),
    )
    return search


def _tell(text: str) -> None:
    print(text, flush=True)


def _pool(asked: Asked) -> Pool:
    from runner.launching.pool import Pool
    from runner.launching.schedule import may_start

    if not asked.slurm:
        return Pool(asked.at_a_time, gpus_per_job=asked.launch["gpus_per_job"], ready=may_start)
    from runner.launching.slurm_pool import SlurmPool
    from runner.launching.sweepdir import SweepDirectory

    return SlurmPool(SweepDirectory(asked.folder.absolute()), asked.launch, _tell)


def _write_sweep(asked: Asked, study: optuna.Study, needs: Sequence[dict[str, Any]] = ()) -> None:
    from runner.tuning.summary import write_sweep

    arguments = asked.trials.argv([])[1:]
    name = str(asked.config["name"])
    write_sweep(asked.folder, study, asked.space, asked.objective, asked.settings, asked.argv, name, needs, arguments)


# ---- the driver, in a job of its own ---------------------------------------------------------------------------------


def _write_driver(asked: Asked) -> None:
    from runner.launching.slurm import driver_script
    from runner.launching.slurm_queue import DRIVER_SCRIPT
    from runner.launching.sweepdir import SweepDirectory

    place = SweepDirectory(asked.folder.absolute())
    (place.path / "slurm").mkdir(parents=True, exist_ok=True)
    write_atomic(place.path / DRIVER_SCRIPT, driver_script(place, asked.launch))


def _submit_driver(asked: Asked) -> int:
    """Submit a job that searches, unless one is in the queue."""
    from runner.launching.slurm import tell_verbs
    from runner.launching.slurm_queue import DRIVER_SCRIPT, queue, require, sbatch
    from runner.launching.sweepdir import SweepDirectory
    from runner.tuning.study import hold, make_pruner, open_study

    place = SweepDirectory(asked.folder.absolute())
    require("sbatch")
    print("\n".join([*asked.describe(), f"folder     {asked.folder}"]))
    there = queue(place).driver
    if there is not None:
        print(f"its driver is in the queue already: job {there.job}, {there}")
        return EXIT_DONE
    with hold(asked.folder):  # a front end may be searching here
        _refuse_other(asked.folder, asked.space, asked.objective)
        pruner = make_pruner(asked.settings.pruner, asked.settings.startup, asked.config)
        _write_sweep(asked, open_study(asked.folder, asked.folder.name, asked.objective.count, pruner))
        _write_driver(asked)
    print(f"submitted its driver: job {sbatch(place.path / DRIVER_SCRIPT)}")
    tell_verbs(place)
    return EXIT_DONE


def _requeue_driver(stops: list[int]) -> None:
    """Before its time limit, or preempted, the driver goes back into the queue; its trials go on meanwhile."""
    from runner.launching.element import goes_on, requeue

    if goes_on(stops):
        requeue()


# ---- before and after ------------------------------------------------------------------------------------------------


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


def _last_words(asked: Asked, search: Search) -> None:
    """Tables, pictures and commands."""
    from runner.tuning.ledger import failed
    from runner.tuning.plots import write_plots
    from runner.tuning.summary import best_trials, command, counts, importances, own, summarise, table

    folder, trials = asked.folder, asked.trials
    study, objective = search.study, search.objective
    every = search.trials()
    print(f"\ntrials: {counts(every)}, in {search.elapsed_s / 60:.1f} minutes")
    for trial in every:
        if failed(trial) and "same_as" not in trial.user_attrs:
            again = "; the same command tries it again" if trial.state.name == "RUNNING" else ""
            what = " ".join(trial.user_attrs.get("overrides") or [])
            print(f"  trial {trial.number} failed{again}: {what}\n    {trial.user_attrs.get('message', '')}")
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
        if search.stopping and search.pool.outlives:
            print(f"  trials in Slurm's queue go on meanwhile; runner cancel {_short(folder)} stops them too")
    elif search.runs_made() < search.budget and search.settings.hours:
        print(f"\ntune.hours={search.settings.hours:g} is spent: the same command with more goes on")


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
