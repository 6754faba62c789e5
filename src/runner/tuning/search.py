"""The search itself: ask Optuna, run the trial, watch it, tell Optuna; every step survives a kill.

What is on disk before a trial's run starts: its parameters (in the journal, by `ask`), its overrides, signature and
directory (journal and sweep.json). A trial that the journal calls RUNNING when a search begins was cut off: its run is
gone on with in its own directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.schema import TuneConfig
from runner.config.signature import signature
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.files import read_json
from runner.launching.pool import Job, Pool
from runner.launching.rundir import RunDirectory
from runner.launching.schedule import NeededJob
from runner.tuning.objective import Objective
from runner.tuning.runs import Runs
from runner.tuning.space import Space
from runner.tuning.study import make_sampler
from runner.tuning.watch import Watcher

POLL_S = 0.5
"""How often the metrics of running trials are looked at."""

FAILURES = 3
"""So many failures before any success end the search: something is wrong with all of it."""

REPEATS = 50
"""So many points in a row that were tried before end the search: the sampler has nothing new to try."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Active:
    """A trial whose run is with the pool."""

    trial: FrozenTrial
    job: Job
    watcher: Watcher
    pruned_at: int | None = None


class Search:
    """Runs trials until the budget is spent.

    Args:
        folder: the tune directory, held by this process.
        study: of that directory.
        space, objective, settings: what was asked for.
        compose: a trial's own overrides → its frozen configuration.
        argv: a trial's own overrides → the command that gives the same run by itself.
        pool: where runs go.
        tell: prints a line.
        keep: called whenever something changed that the files in the directory should show.
        jobs: trials at a time.
        keep_going: whether a failed trial is told and passed over, or ends the search.
        spent_s: seconds that earlier calls have spent.
    """

    def __init__(
        self,
        folder: Path,
        study: optuna.Study,
        space: Space,
        objective: Objective,
        settings: TuneConfig,
        *,
        compose: Callable[[list[str]], dict[str, Any]],
        argv: Callable[[list[str]], list[str]],
        pool: Pool,
        tell: Callable[[str], None],
        keep: Callable[[], None],
        jobs: int = 1,
        keep_going: bool = True,
        spent_s: float = 0.0,
    ) -> None:
        self.folder, self.study, self.space, self.objective = folder, study, space, objective
        self.settings, self.compose, self.argv, self.pool = settings, compose, argv, pool
        self.tell, self.keep, self.jobs, self.keep_going = tell, keep, jobs, keep_going
        self.active: dict[int, Active] = {}
        self.left: list[str] = []  # runs that were stopped from outside
        self.stopping = self.exhausted = False
        self.trouble = ""
        self.runs = Runs(pool, folder.name, tell)
        self._spent_s, self._began = spent_s, time.monotonic()
        if "objective" in study.user_attrs:
            objective.restore(study.user_attrs["objective"])

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on the search, earlier calls included."""
        return self._spent_s + time.monotonic() - self._began

    @property
    def budget(self) -> int:
        """How many runs the search may make; a finite space is never asked for more than it has."""
        size = self.space.size
        asked = self.settings.trials or (size if self.settings.sampler == "grid" else None) or 20
        return min(asked, size) if size is not None else asked

    def runs_made(self) -> int:
        """Trials that had a run of their own, those under way included."""
        return sum("same_as" not in trial.user_attrs for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """All trials, oldest first."""
        return self.study.get_trials(deepcopy=False)

    def run(self, stops: list[int]) -> int:
        """Search; `stops` grows by each stop signal that arrives. Returns the exit code."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                self._place(trial)
        looked = 0.0
        while True:
            self._heed(stops)
            while not self._full():
                self._next()
            if not self.active:
                break
            for job in self.pool.step(0.1):
                self._ended(job)
            if time.monotonic() - looked > POLL_S:
                looked = time.monotonic()
                self._watch()
        self.keep()
        if self.stopping or self.left:
            return EXIT_STOPPED
        done = any(trial.state == TrialState.COMPLETE for trial in self.trials())
        return EXIT_DONE if done and not self.trouble else EXIT_FAILED

    # ---- new trials --------------------------------------------------------------------------------------------

    def _full(self) -> bool:
        """Whether no trial may be added now."""
        hours = self.settings.hours
        return (
            self.stopping
            or self.exhausted
            or bool(self.trouble)
            or len(self.active) >= self.jobs
            or self.runs_made() >= self.budget
            or (hours is not None and self.elapsed_s >= hours * 3600)
        )

    def _next(self) -> None:
        """Ask for a trial and place it."""
        trials = self.trials()
        tail = trials[-REPEATS:]
        if len(tail) == REPEATS and all("same_as" in trial.user_attrs for trial in tail):
            self.exhausted = True
            self.tell(f"the last {REPEATS} points were all tried before: the search ends here")
            return
        if self.settings.sampler == "grid":
            tried = [self.space.overrides(trial.params) for trial in trials if trial.params]
            point = next((p for p in self.space.grid() if self.space.overrides(p) not in tried), None)
            if point is None:
                self.exhausted = True
                return
            self.study.enqueue_trial(point)
        self.study.sampler = make_sampler(self.settings.sampler, self.settings.seed, len(trials), self.settings.startup)
        asked = self.study.ask(self.space.distributions())
        self.study.sampler = RandomSampler(seed=0)  # handles of trials that are there must not ask it for anything
        self._place(self._frozen(asked.number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self.trials()[number]

    def _place(self, trial: FrozenTrial) -> None:
        """Give a trial its answer, if that is known, or its run."""
        if set(trial.params) != {axis.key for axis in self.space.axes}:  # cut off inside `ask`
            self._attribute(trial, "message", "cut off before its parameters were chosen")
            self._attribute(trial, "same_as", None)  # it never had a run
            self.study.tell(trial.number, state=TrialState.FAIL)
            return
        overrides = self.space.overrides(trial.params)
        earlier = next((t for t in self.trials()[: trial.number] if t.user_attrs.get("overrides") == overrides), None)
        if earlier is None:
            try:
                config = self.compose(overrides)
            except UserError as error:
                self._attribute(trial, "overrides", overrides)
                self._fail(trial, error.problems[0].what)
                return
            sig = signature(config)
            earlier = next((t for t in self.trials()[: trial.number] if t.user_attrs.get("signature") == sig), None)
        if earlier is not None:
            self._repeat(trial, earlier, overrides)
            return
        directory = f"jobs/{trial.number:03d}-{sig}"
        for key, value in (("signature", sig), ("directory", directory), ("overrides", overrides)):
            self._attribute(trial, key, value)
        self.keep()  # the mapping is on disk before the run is
        path = self.folder / directory
        if "pruned_at" in trial.user_attrs:  # killed between the decision and the end of the run
            self._prune(trial, path, trial.user_attrs["pruned_at"])
            return
        job = self.runs.submit(config, path, self.argv(overrides), trial.number)
        if self.runs.needs():
            self.keep()
        self.active[trial.number] = Active(trial, job, Watcher(path))
        self.tell(f"trial {trial.number}: {' '.join(overrides)}")

    def _repeat(self, trial: FrozenTrial, earlier: FrozenTrial, overrides: list[str]) -> None:
        """A configuration that was tried before is answered from its result, now or once that is there."""
        first = earlier.user_attrs.get("same_as")
        number = earlier.number if first is None else first
        source = self._frozen(number)
        self._attribute(trial, "overrides", overrides)
        self._attribute(trial, "same_as", number)
        if source.state not in ENDED:
            return  # told together with the trial that it repeats
        self._echo(trial, source)

    def _echo(self, trial: FrozenTrial, source: FrozenTrial) -> None:
        values = source.values if source.state == TrialState.COMPLETE else None
        if "metrics" in source.user_attrs:
            self._attribute(trial, "metrics", source.user_attrs["metrics"])
        if source.state == TrialState.PRUNED:
            for step, value in source.intermediate_values.items():
                self._handle(trial).report(value, step)
        self.study.tell(trial.number, values, state=source.state)

    # ---- trials under way ----------------------------------------------------------------------------------------

    def _heed(self, stops: list[int]) -> None:
        """The first signal stops the runs resumably, the second at once."""
        if stops and not self.stopping:
            self.stopping = True
            self.tell("stopping: running trials save and end; once more ends them at once")
            self.pool.stop()
        elif len(stops) > 1:
            self.pool.kill()

    def _watch(self) -> None:
        """Report what the running trials have measured, and stop those that the pruner gives up on."""
        if self.settings.pruner == "none" or not self.objective.known or self.stopping:
            return
        for active in list(self.active.values()):
            if active.pruned_at is not None or not active.job.running:
                continue
            handle = self._report(active.trial, active.watcher)
            if active.watcher.step is not None and handle.should_prune():
                active.pruned_at = active.watcher.step
                self._attribute(active.trial, "pruned_at", active.pruned_at)
                active.job.stop()

    def _report(self, trial: FrozenTrial, watcher: Watcher, ended: bool = False) -> Trial:
        """Hand evaluations that are new to Optuna."""
        handle = self._handle(trial)
        if self.objective.count == 1:
            reported = self._frozen(trial.number).intermediate_values
            for step, metrics in watcher.new(ended):
                values = self.objective.minimised(metrics)
                if values is not None and step not in reported:
                    handle.report(values[0], step)
        return handle

    def _handle(self, trial: FrozenTrial) -> Trial:
        """A live trial, also of an earlier process."""
        return Trial(self.study, trial._trial_id)

    def _attribute(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self._handle(trial).set_user_attr(key, value)

    # ---- ended trials ----------------------------------------------------------------------------------------------

    def _ended(self, job: Job) -> None:
        if isinstance(job, NeededJob):
            how = f"found in {job.path}" if job.skipped else job.state.lower()
            self.tell(f"{job.label}: {how}{f': {job.message}' if job.lost else ''}")
            return
        active = next(a for a in self.active.values() if a.job is job)
        trial = active.trial
        del self.active[trial.number]
        if job.code == EXIT_DONE:
            self._complete(trial, active)
        elif active.pruned_at is not None and job.code == EXIT_STOPPED:
            self._prune(trial, job.path, active.pruned_at)
        elif job.code == EXIT_STOPPED:
            if not self.stopping:
                self.left.append(str(job.path))
                self.tell(f"trial {trial.number} was stopped from outside; running the command again goes on with it")
        elif not self.stopping:  # ended at once by the user's second signal: it will be gone on with
            self._fail(trial, job.message or f"exit code {job.code}")
        self.keep()

    def _complete(self, trial: FrozenTrial, active: Active) -> None:
        result = read_json(active.job.path / "result.json")
        if self.objective.learn(result):
            self.study.set_user_attr("objective", self.objective.state())
        metrics = result["validation"]
        self._attribute(trial, "metrics", metrics)
        values = self.objective.minimised(metrics)
        if values is None:
            self._fail(trial, f"{' or '.join(self.objective.names)} is undefined on the validation split")
            return
        if self.settings.pruner != "none":
            self._report(trial, active.watcher, ended=True)  # what later trials are compared with
        self.study.tell(trial.number, values)
        natural = self.objective.natural(metrics) or []
        shown = ", ".join(f"{n} {v:.5g}" for n, v in zip(self.objective.names, natural, strict=True))
        self.tell(f"trial {trial.number} done: {shown}{self._standing(trial)}")
        self._tell_repeats(trial)

    def _standing(self, trial: FrozenTrial) -> str:
        best = [t.number for t in self.study.best_trials]
        if trial.number in best:
            return "   the best so far" if self.objective.count == 1 else "   on the front"
        return f"   best: trial {best[0]}" if self.objective.count == 1 else f"   front: {len(best)} trials"

    def _prune(self, trial: FrozenTrial, path: Path, step: int) -> None:
        """End a trial that the pruner gave up on; its run says so, and can still be resumed by hand."""
        words = f"pruned by `runner tune` ({self.settings.pruner}) after its validation at step {step}"
        if (path / "run.json").exists():
            run = RunDirectory(path)
            attempts = run.info()["attempts"]
            if attempts:
                attempts[-1] |= {"message": words, "status": "STOPPED"}
            run.update(status="STOPPED", attempts=attempts, pruned={"step": step, "by": self.settings.pruner})
        self._attribute(trial, "message", words)
        self.study.tell(trial.number, state=TrialState.PRUNED)
        self.tell(f"trial {trial.number} pruned at step {step}")
        self._tell_repeats(trial)

    def _fail(self, trial: FrozenTrial, message: str) -> None:
        self._attribute(trial, "message", message)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.tell(f"trial {trial.number} failed: {message}")
        self._tell_repeats(trial)
        states = [t.state for t in self.trials() if t.state in ENDED and "same_as" not in t.user_attrs]
        if not self.keep_going:
            self.trouble = f"trial {trial.number} failed and launch.keep_going=false: {message}"
        elif len(states) >= FAILURES and all(state == TrialState.FAIL for state in states):
            self.trouble = f"the first {len(states)} trials all failed, the last one: {message}"

    def _tell_repeats(self, source: FrozenTrial) -> None:
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("same_as") == source.number:
                self._echo(trial, self._frozen(source.number))


def metrics_of(trial: FrozenTrial) -> Mapping[str, Mapping[str, float | None]]:
    """The validation metrics of a completed trial."""
    return trial.user_attrs.get("metrics") or {}
