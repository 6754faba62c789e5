"""Several runs at a time on this machine: each its own worker process(es), its own directory, its own GPUs.

    pool = Pool(2)
    job = pool.submit(config, Path("…/jobs/000-3fa9c1d2"), ["train", "seed=0"])
    while not job.ended:
        pool.step(0.5)        # starts what fits, notices what has ended
    job.state                 # COMPLETED, FAILED, STOPPED

Never imports torch. `step` must be called from the main thread: on Linux the workers stop by themselves when the thread
that started them dies, so that a killed front end leaves no orphan.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from runner.config.signature import weights_diff
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.files import write_atomic
from runner.launching.devices import Gpus, thread_share
from runner.launching.locks import hold
from runner.launching.ranks import Ranks, environments, settle, worker_command
from runner.launching.rundir import RunDirectory

LOG = "console.log"
"""In a job's directory: what its workers print."""

LOCK = ".front"
"""In a job's directory: held by the front end that runs it, so that two of them never run one job at a time."""


class Job:
    """A run that a pool looks after: waiting, running or ended.

    Attributes:
        config: frozen, with `run_dir` set to its directory.
        path: its directory.
        argv: the command that gives the same run by itself.
        more: further keys of its `run.json`.
        code: its exit code once it has ended, else None.
        message: why it did not end well, one line.
        skipped: it was COMPLETED before, or ended by another front end: nothing was started.
        elsewhere: another front end holds its directory; the pool looks again now and then.
        started, ended_at: seconds of `time.monotonic`.
    """

    def __init__(self, config: Mapping[str, Any], path: Path, argv: Sequence[str], more: Mapping[str, Any]) -> None:
        self.config = {**config, "run_dir": str(path)}
        self.path = path
        self.argv = list(argv)
        self.more = dict(more)
        self.code: int | None = None
        self.message = ""
        self.skipped = False
        self.elsewhere = False
        self.started: float | None = None
        self.ended_at: float | None = None
        self.gpus: list[str] = []
        self._ranks: Ranks | None = None
        self._lock: IO[str] | None = None
        self._log: IO[bytes] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it in this pool."""
        return self.code is not None

    @property
    def running(self) -> bool:
        """Whether its workers run now."""
        return self._ranks is not None

    @property
    def state(self) -> str:
        """WAITING, RUNNING, or how it ended: COMPLETED, FAILED, STOPPED."""
        if self.code is None:
            return "RUNNING" if self.running else "WAITING"
        return {EXIT_DONE: "COMPLETED", EXIT_STOPPED: "STOPPED"}.get(self.code, "FAILED")

    def open(self) -> RunDirectory | None:
        """Take the job's directory; None when there is nothing to start: it is done, or another front end has it.

        Raises:
            UserError: the directory holds another configuration, or cannot be written.
        """
        self._lock = hold(self.path / LOCK)
        if self._lock is None:
            self.elsewhere = True
            return None
        run = claim(self)
        status = run.info()["status"]
        ended = {"COMPLETED": EXIT_DONE, "FAILED": EXIT_FAILED, "STOPPED": EXIT_STOPPED}
        if status == "COMPLETED" or (self.elsewhere and status in ended):  # the other front end has had its turn
            self.skipped = True
            self.end(ended[status], "" if status == "COMPLETED" else last_message(run))
            return None
        self.elsewhere = False
        return run

    def stop(self) -> None:
        """Save and end, resumably; a job that waits is withdrawn."""
        self._end_by(signal.SIGTERM)

    def kill(self) -> None:
        """End at once; what came after the last checkpoint is lost."""
        self._end_by(signal.SIGKILL)

    def _end_by(self, number: int) -> None:
        if self._ranks is not None:
            self._ranks.stopped = True
            self._ranks.send(number)
        elif self.code is None:
            self.end(EXIT_STOPPED, "not started")

    def end(self, code: int, message: str = "") -> None:
        """Nothing more will happen to it; its lock is given back."""
        self.code, self.message, self.ended_at = code, message, time.monotonic()
        self._ranks = None
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None


class Pool:
    """Runs jobs, so many at a time, in the order in which they were submitted.

    Args:
        jobs: so many at a time.
        gpus_per_job: see `runner.launching.devices.Gpus`.
        ready: whether a job may start now; asked again and again. It may end the job instead, by `end`.

    Attributes:
        parting: what becomes of running jobs when the pool is stopped, in words.
        outlives: whether they go on without it.
    """

    parting = "running trials save and end; once more ends them at once"
    outlives = False

    def __init__(
        self, jobs: int = 1, *, gpus_per_job: int | None = None, ready: Callable[[Job], bool] = lambda job: True
    ) -> None:
        self.size = jobs
        self.ready = ready
        self.jobs: list[Job] = []
        self._gpus = Gpus(gpus_per_job)
        self._open: list[Job] = []

    def submit(self, config: Mapping[str, Any], path: Path, argv: Sequence[str], **more: Any) -> Job:
        """Hand over a frozen configuration and the directory it is to run in; it starts in a later `step`.

        A directory that holds the run already is gone on with, from its newest checkpoint.
        """
        return self.add(Job(config, path, argv, more))

    def add(self, job: Job) -> Job:
        """Hand over a job of the caller's own making."""
        self.jobs.append(job)
        self._open.append(job)
        return job

    @property
    def running(self) -> list[Job]:
        """The jobs whose workers run now."""
        return [job for job in self._open if job.running]

    @property
    def idle(self) -> bool:
        """Whether every job has ended."""
        return not self._open

    def step(self, timeout: float = 0.1) -> list[Job]:
        """Start what fits, wait a moment, and look who has ended.

        Returns:
            The jobs that have ended since the last call.
        """
        self._start()
        deadline = time.monotonic() + timeout
        while True:
            for job in self._open:
                if job._ranks is not None and (code := job._ranks.poll()) is not None:
                    self._reap(job, code)
            ended = [job for job in self._open if job.ended]
            if ended or time.monotonic() >= deadline:
                break
            time.sleep(min(0.02, timeout))
        self._open = [job for job in self._open if not job.ended]
        return ended

    def drain(self) -> None:
        """Run until every job has ended."""
        while not self.idle:
            self.step(0.5)

    def stop(self) -> None:
        """Every running job saves and ends, the waiting ones are withdrawn."""
        for job in self._open:
            job.stop()

    def kill(self) -> None:
        """End everything at once."""
        for job in self._open:
            job.kill()

    # ---- starting and ending -----------------------------------------------------------------------------------

    def _start(self) -> None:
        busy = len(self.running)
        for job in self._open:
            if busy >= self.size:
                return
            if job.ended or job.running or not self.ready(job) or job.ended:
                continue
            gpus = self._gpus.lease(job.config)
            if gpus is None:
                continue
            try:
                started = start(job, gpus, self.size)
            except (UserError, OSError) as error:
                job.end(EXIT_FAILED, error.problems[0].what if isinstance(error, UserError) else str(error))
                started = False
            if started:
                busy += 1
            else:
                self._gpus.give_back(gpus)

    def _reap(self, job: Job, code: int) -> None:
        assert job._ranks is not None
        run = RunDirectory(job.path)
        code, words = settle(run, code, job._ranks.stopped)
        self._gpus.give_back(job.gpus)
        job.end(code, "" if code == EXIT_DONE else words or last_message(run))


def start(job: Job, gpus: list[str], jobs: int) -> bool:
    """Start a job's workers; False when there is nothing to start.

    Raises:
        UserError: its directory holds another configuration, or cannot be written.
        OSError: the workers cannot be started.
    """
    if job.open() is None:
        return False
    extra = thread_share(job.config, jobs) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
    job._log = open(job.path / LOG, "ab")  # noqa: SIM115 - open as long as the job runs
    job._ranks = Ranks(worker_command(job.path), environments(job.config, **extra), job._log)
    job.gpus, job.started = gpus, time.monotonic()
    return True


def claim(job: Job) -> RunDirectory:
    """The job's directory with its configuration in it; what is there already must mean the same weights."""
    if not (job.path / "run.json").exists():
        return RunDirectory.claim(job.config, "train", job.argv, **job.more)
    run = RunDirectory.open(job.path)
    before = run.config()
    refuse_changes(before, job.config, job.path)
    if before != job.config and run.info()["status"] != "COMPLETED":
        # What does not affect weights (processes, tracking, paths) may change between attempts.
        write_atomic(job.path / "config.yaml", yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True))
    return run


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Raise UserError when two configurations would not give the same weights."""
    changes = weights_diff(old, new)
    if changes:
        shown = "; ".join(f"{key}: {before!r} → {after!r}" for key, before, after in changes[:8])
        raise UserError(
            f"{path} holds a run with another configuration: {shown}",
            "a run keeps what affects its weights: leave run_dir out to start a new run, or undo the change",
            f"runner status {path}",
        )


def last_message(run: RunDirectory) -> str:
    """Why a run's newest attempt ended, one line; "" where nothing was recorded."""
    info = run.info()
    attempts = info.get("attempts") or []
    message = str(info.get("message") or (attempts[-1].get("message", "") if attempts else ""))
    if not message:
        with contextlib.suppress(OSError):
            with open(run.path / LOG, "rb") as log:
                log.seek(max(0, os.path.getsize(run.path / LOG) - 4000))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
            message = lines[-1].strip() if lines else ""
    return message.splitlines()[0] if message else ""
