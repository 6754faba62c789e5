"""The search itself: ask Optuna, run the trial, watch it, tell Optuna; every step survives a kill.

What is on disk before a trial's run starts: its parameters (in the journal, by `ask`), its overrides, signature and
directory (journal and sweep.json). A trial that the journal calls RUNNING when a search begins was cut off: its run is
gone on with in its own directory; a run that failed is tried again, as often as tune.retries allows. Where runs outlive
this process (Slurm), one that was under way is found again in the queue, or ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from runner.config.schema import TuneConfig
from runner.config.signature import signature
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.launching.pool import Job, Pool
from runner.launching.schedule import NeededJob
from runner.tuning.ledger import Ledger, failed
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
        budget: how many runs it may make, those of earlier calls included.
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
        budget: int,
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
        self.ledger = Ledger(study, objective, settings, tell)
        self.budget = budget
        self.active: dict[int, Active] = {}
        self.left: list[str] = []  # runs that were stopped from outside
        self.stopping = self.exhausted = False
        self.trouble = ""
        self.runs = Runs(pool, folder.name, tell)
        self._spent_s, self._began = spent_s, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on the search, earlier calls included."""
        return self._spent_s + time.monotonic() - self._began

    def runs_made(self) -> int:
        """Trials that had a run of their own, those under way included."""
        return sum("same_as" not in trial.user_attrs for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """All trials, oldest first."""
        return self.ledger.trials()

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
        self._place(self.ledger.frozen(asked.number))

    def _place(self, trial: FrozenTrial) -> None:
        """Give a trial its answer, if that is known, or its run."""
        if set(trial.params) != {axis.key for axis in self.space.axes}:  # cut off inside `ask`
            # It never had a run: as one that was answered from another, it takes nothing from the budget.
            self.ledger.note(trial, message="cut off before its parameters were chosen", same_as=None)
            self.study.tell(trial.number, state=TrialState.FAIL)
            return
        overrides = self.space.overrides(trial.params)
        before = self.trials()[: trial.number]
        earlier = next((t for t in before if t.user_attrs.get("overrides") == overrides), None)
        if earlier is None:
            try:
                config = self.compose(overrides)
            except UserError as error:
                self.ledger.note(trial, overrides=overrides)
                self._failed(trial, error.problems[0].what, again=False)
                return
            sig = signature(config)
            earlier = next((t for t in before if t.user_attrs.get("signature") == sig), None)
        if earlier is not None:
            self.ledger.repeat(trial, earlier, overrides)
            return
        directory = f"jobs/{trial.number:03d}-{sig}"
        again = {"message": ""} if trial.user_attrs.get("message") else {}
        self.ledger.note(trial, signature=sig, directory=directory, overrides=overrides, **again)
        self.keep()  # the mapping is on disk before the run is
        path = self.folder / directory
        job = self.runs.submit(config, path, self.argv(overrides), trial.number)
        if self.runs.needs():
            self.keep()
        self.active[trial.number] = Active(trial, job, Watcher(path), trial.user_attrs.get("pruned_at"))
        if "pruned_at" in trial.user_attrs:  # killed between the decision and the end of the run
            job.stop()
        self.tell(f"trial {trial.number}: {' '.join(overrides)}")

    # ---- trials under way ----------------------------------------------------------------------------------------

    def _heed(self, stops: list[int]) -> None:
        """The first signal stops the runs resumably, the second at once."""
        if stops and not self.stopping:
            self.stopping = True
            self.tell(f"stopping: {self.pool.parting}")
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
            handle = self.ledger.report(active.trial, active.watcher)
            if active.watcher.step is not None and handle.should_prune():
                active.pruned_at = active.watcher.step
                self.ledger.note(active.trial, pruned_at=active.pruned_at)
                active.job.stop()

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
            useless = self.ledger.complete(trial, job.path, active.watcher)
            if useless:
                self._failed(trial, useless, again=False)
        elif active.pruned_at is not None and job.code == EXIT_STOPPED and not (self.stopping and self.pool.outlives):
            self.ledger.prune(trial, job.path, active.pruned_at)
        elif job.code == EXIT_STOPPED:
            if not self.stopping:
                self.left.append(str(job.path))
                self.tell(f"trial {trial.number} was stopped from outside; running the command again goes on with it")
        elif not self.stopping:  # ended at once by the user's second signal: it will be gone on with
            self._failed(trial, job.message or f"exit code {job.code}", again=True)
        self.keep()

    def _failed(self, trial: FrozenTrial, message: str, *, again: bool) -> None:
        """A trial has failed: for good, or until the next call tries it again."""
        (self.ledger.broke if again else self.ledger.fail)(trial, message)
        if not self.keep_going:
            self.trouble = f"trial {trial.number} failed and launch.keep_going=false: {message}"
        self._count()

    def _count(self) -> None:
        """Whether anything ever succeeds."""
        own = [t for t in self.trials() if "same_as" not in t.user_attrs]
        bad = [t for t in own if failed(t)]
        if len(bad) >= FAILURES and not any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in own):
            self.trouble = f"the first {len(bad)} trials all failed, the last one: {bad[-1].user_attrs.get('message')}"
