"""A sweep on this machine: needed runs first, then the jobs, so many at a time, until all have ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from runner.launching import needs as needed
from runner.launching.locks import held, hold
from runner.launching.needs import Need
from runner.launching.pool import Job, Pool
from runner.launching.rundir import LOCK, RunDirectory
from runner.launching.signals import quiet_signals
from runner.launching.sweepdir import Entry, SweepDirectory

TICK_S = 0.1


class Board(Protocol):
    """What is told how a sweep goes; see `runner.launching.board`."""

    def update(self, jobs: Sequence[SweepJob | NeededJob]) -> None:
        """Called at every tick with all jobs."""

    def ended(self, job: SweepJob | NeededJob) -> None:
        """A job has ended."""

    def message(self, text: str) -> None:
        """A line to read."""


class NeededJob(Job):
    """A run that other jobs need. Its directory is an ordinary one, found by signature or newly claimed."""

    def __init__(self, need: Need, argv: Sequence[str]) -> None:
        output = Path(need.config["output_dir"]) / "train" / str(need.config["name"])
        super().__init__(need.config, output, need.argv(argv), {"role": need.role})
        self.config = {**need.config, "run_dir": None}  # it claims a directory, or continues one
        self.need = need
        self.after: list[NeededJob] = []
        self._need_lock: IO[str] | None = None

    @property
    def label(self) -> str:
        """What a person calls it."""
        return str(self.need)

    @property
    def lost(self) -> bool:
        """It has ended and there is no run to use."""
        return self.ended and self.code != EXIT_DONE

    def open(self) -> RunDirectory | None:
        """Find the run, or the unfinished one, or claim a new directory; None where another process trains it now."""
        if self._need_lock is None:
            self._need_lock = hold(needed.lock_path(self.need))
            if self._need_lock is None:
                self.elsewhere = True
                return None
        found = needed.find(self.need)
        if found is not None:
            self.path, self.skipped = found, True
            self.end(EXIT_DONE)
            return None
        unfinished = needed.unfinished(self.need)
        if unfinished and held(unfinished / LOCK):  # by somebody for whom it is no need
            self._give_back()
            self.elsewhere = True
            return None
        self.elsewhere = False
        run = RunDirectory.open(unfinished) if unfinished else None
        if run is None:
            run = RunDirectory.claim(self.config, "train", self.argv, **self.more)
        self.path = run.path
        own = needed.needs(self.need.config)  # the base that an expert is tuned from, the round before a round
        if own:
            run.update(needs=[need.entry(needed.find(need)) for need in own])
        return run

    def end(self, code: int, message: str = "") -> None:
        """Give the need back to other processes."""
        super().end(code, message)
        self._give_back()

    def _give_back(self) -> None:
        if self._need_lock is not None:
            self._need_lock.close()
            self._need_lock = None


class SweepJob(Job):
    """A job of the sweep."""

    def __init__(self, sweep: SweepDirectory, entry: Entry, config: Mapping[str, Any], argv: Sequence[str]) -> None:
        super().__init__(config, sweep.directory(entry), argv, {"sweep": sweep.id})
        self.entry = entry
        self.needs: list[NeededJob] = []

    @property
    def label(self) -> str:
        """What a person calls it."""
        return f"job {self.entry.number}"

    def open(self) -> RunDirectory | None:
        """As every job; names the needed runs in run.json, and fails where an expert is missing."""
        run = super().open()
        if run is None or not self.needs:
            return run
        run.update(needs=[job.need.entry(None if job.lost else job.path) for job in self.needs])
        lost = [job for job in self.needs if job.lost and job.need.role != "baseline"]
        if lost:
            words = f"there is no {lost[0].need}: {lost[0].message or 'it failed'}"
            run.update(status="FAILED", message=words)
            self.end(EXIT_FAILED, words)
            return None
        return run


@dataclass
class Outcome:
    """How a sweep went.

    Attributes:
        code: 0, 1 or 75.
        jobs: of the sweep, ended or not.
        needs: the needed runs that were looked after.
    """

    code: int
    jobs: list[SweepJob] = field(default_factory=list)
    needs: list[NeededJob] = field(default_factory=list)


def collect_needs(configs: Sequence[tuple[SweepJob | None, Mapping[str, Any]]], argv: Sequence[str]) -> list[NeededJob]:
    """The runs that configurations need, each once and after those that it needs itself; jobs are tied to theirs."""
    found: dict[str, NeededJob] = {}

    def gather(config: Mapping[str, Any]) -> list[NeededJob]:
        mine: list[NeededJob] = []
        for need in needed.needs(config):
            job = found.get(need.signature)
            if job is None:
                job = NeededJob(need, argv)
                job.after = [*gather(need.config), *(other for other in mine if other.need.role == "base")]
                found[need.signature] = job
            mine.append(job)
        return mine

    for job, config in configs:
        wanted = gather(config)
        if job is not None:
            job.needs = wanted
    return list(found.values())


def may_start(job: Job) -> bool:
    """Whether what a job needs has ended; for `Pool`. A needed run whose own needs are lost is ended here."""
    if isinstance(job, NeededJob):
        lost = next((other for other in job.after if other.lost), None)
        if lost is not None:
            job.end(EXIT_FAILED, f"there is no {lost.need}")
        return all(other.ended for other in job.after)
    assert isinstance(job, SweepJob)
    return all(need.ended for need in job.needs)


def run_sweep(
    jobs: Sequence[SweepJob],
    wanted: Sequence[NeededJob],
    board: Board,
    *,
    at_a_time: int,
    gpus_per_job: int | None,
    keep_going: bool,
) -> Outcome:
    """Run jobs and what they need; a first stop signal stops them resumably, a second one ends them at once."""
    failed = False

    pool = Pool(min(at_a_time, len(jobs) + len(wanted)), gpus_per_job=gpus_per_job, ready=may_start)
    queued: set[int] = set()
    for job in jobs:  # each job's needs right before it: results come early, not after all needed runs
        for need in (*in_order(job.needs), job):
            if id(need) not in queued:
                queued.add(id(need))
                pool.add(need)
    everything = [*wanted, *jobs]
    with quiet_signals() as received:
        handled = 0
        board.update(everything)
        while not pool.idle:
            for job in pool.step(TICK_S):
                board.ended(job)
                if job.state == "FAILED" and not keep_going and not failed and not received:
                    failed = True
                    waiting = [other for other in pool.jobs if not other.ended and not other.running]
                    board.message(f"keep_going=false: {len(waiting)} jobs are not started")
                    for other in waiting:
                        other.stop()
            for number in received[handled:]:
                handled += 1
                _stop(pool, board, signal.Signals(number).name, handled)
            board.update(everything)
            if not pool.running and not pool.idle:
                time.sleep(TICK_S)  # all that is left runs elsewhere
    bad = [job for job in jobs if job.code != EXIT_DONE]
    if received and any(job.state == "STOPPED" for job in bad):
        return Outcome(EXIT_STOPPED, list(jobs), list(wanted))
    if not bad:
        return Outcome(EXIT_DONE, list(jobs), list(wanted))
    stopped = all(job.state == "STOPPED" for job in bad) and not failed
    return Outcome(EXIT_STOPPED if stopped else EXIT_FAILED, list(jobs), list(wanted))


def _stop(pool: Pool, board: Board, name: str, times: int) -> None:
    running = len(pool.running)
    if times == 1:
        again = "; once more ends them at once" if name == "SIGINT" else ""
        board.message(f"{name}: {running} running jobs save and stop, the others are not started{again}")
        pool.stop()
    elif times == 2:
        board.message(f"{name} again: {running} running jobs are ended at once")
        pool.kill()


def in_order(needs: Sequence[NeededJob]) -> list[NeededJob]:
    """Needed runs with those before them that they need themselves."""
    ordered: list[NeededJob] = []
    for need in needs:
        for one in (*in_order(need.after), need):
            if one not in ordered:
                ordered.append(one)
    return ordered
