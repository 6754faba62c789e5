"""A pool whose jobs are elements of Slurm arrays instead of processes of this machine; a search hands it its trials.

    pool = SlurmPool(SweepDirectory(folder), launch)
    pool.add(job)
    while not job.ended:
        pool.step(0.5)        # submits what is new, notices what has ended

Jobs outlive the process that submitted them: a new one finds them in the queue, by the script that they were submitted
with, or ended, by their run directories. Each is an element as in a sweep (`runner.launching.element`): requeued before
its time limit, on preemption and when its node dies, always in the same directory.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.launching import needs as needed
from runner.launching.pool import Job, Pool, last_message
from runner.launching.ranks import settle
from runner.launching.rundir import RunDirectory
from runner.launching.schedule import NeededJob, SweepJob, may_start
from runner.launching.slurm import write_scripts
from runner.launching.slurm_queue import (
    NEEDS_SCRIPT,
    SCRIPT,
    Queue,
    Queued,
    ended_as,
    queue,
    record,
    require,
    sbatch,
    scancel,
)
from runner.launching.sweepdir import SweepDirectory, state_of

LOOK_S = 1.0
"""How often run directories are looked at."""

ASK_S = 10.0
"""How often Slurm is asked, unless a run directory says that something has happened."""

SOON_S = 2.0
"""How soon it is asked again then: many searches may share one controller."""

PATIENCE_S = 900.0
"""How long Slurm may refuse to answer or to submit; controllers are restarted, and limits of a user are reached."""


UNDER_WAY = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED")
"""What Slurm calls jobs that have not ended."""


class Element:
    """A job's place in the queue; stands where a job of this machine has its processes (`runner.launching.ranks`).

    Attributes:
        job: what Slurm calls it.
        seen: what its run.json said when Slurm was last asked.
        stopped: whether it was taken out.
    """

    def __init__(self, job: str, seen: object) -> None:
        self.job, self.seen = job, seen
        self.stopped = False

    def send(self, number: int) -> None:
        """Take the job out of the queue; one that runs saves first."""
        self.stopped = True
        scancel(self.job)


class SlurmPool(Pool):
    """As `Pool`; how many jobs run at a time is Slurm's business.

    Args:
        place: of the search. Its `sweep.json` must have a job's entry before the job is added.
        launch: the settings of all jobs.
        tell: prints a line.
    """

    parting = "trials in Slurm's queue go on by themselves"
    outlives = True

    def __init__(self, place: SweepDirectory, launch: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        super().__init__(gpus_per_job=0, ready=may_start)
        require("sbatch")
        self.place, self.launch, self.tell = place, launch, tell
        self._queue = Queue({}, {})
        self._looked = self._asked = -ASK_S
        self._silent_since: float | None = None
        self._answered = False

    def add(self, job: Job) -> Job:
        """Hand over a job; its configuration is frozen, because the element reads it from there."""
        if isinstance(job, NeededJob):
            need = job.need
            self.place.add_needs([(need.role, need.tasks, need.signature, need.config)])
        else:
            self.place.freeze(job.path.name, job.config)
        super().add(job)
        if (job.path / "run.json").is_file():  # an earlier process may have submitted it
            self._find_again([job])
        return job

    def step(self, timeout: float = 0.1) -> list[Job]:
        """Submit what is new, wait a moment, and look who has ended.

        Raises:
            UserError: Slurm has refused to answer, or to submit, for a long time; or the first time.
        """
        if time.monotonic() - self._looked < LOOK_S and not self._to_place():
            time.sleep(timeout)
            return []
        self._looked = time.monotonic()
        try:
            self._start()
            self._look()
            self._answered, self._silent_since = True, None
        except UserError as error:
            self._bear(error)
        ended = [job for job in self._open if job.ended]
        self._open = [job for job in self._open if not job.ended]
        return ended

    def stop(self) -> None:
        """Let go of everything: what is in the queue goes on."""
        for job in self._open:
            job.end(EXIT_STOPPED, "left in Slurm's queue" if job.running else "not submitted")

    def kill(self) -> None:
        """The same."""
        self.stop()

    # ---- submitting ------------------------------------------------------------------------------------------------

    def _to_place(self) -> list[Job]:
        """Jobs that may be submitted now, and are not known to be in the queue."""
        if self._silent_since is not None and time.monotonic() - self._asked < ASK_S:
            return []  # it was just refused
        return [job for job in self._open if not job.ended and not job.running and self.ready(job) and not job.ended]

    def _start(self) -> None:
        """Find jobs that are in the queue or done already; submit the others, as one array of each kind."""
        ready = self._to_place()
        if not ready:
            return
        new = self._find_again(ready)
        self._submit([job for job in new if isinstance(job, NeededJob)], NEEDS_SCRIPT)
        self._submit([job for job in new if not isinstance(job, NeededJob)], SCRIPT)

    def _find_again(self, jobs: Sequence[Job]) -> list[Job]:
        """Place jobs that are in the queue, end those that are completed; returns the others."""
        self._ask()
        new: list[Job] = []
        for job in jobs:
            if self._done(job):
                job.skipped = True
                job.end(EXIT_DONE)
            elif (found := self._find(job)) is not None:
                self._place(job, found)
            else:
                new.append(job)
        return new

    def _submit(self, jobs: Sequence[Job], name: str) -> None:
        if not jobs:
            return
        numbers = [self._index(job) for job in jobs]
        needs = name == NEEDS_SCRIPT
        write_scripts(self.place, self.launch, [] if needs else numbers, numbers if needs else [])
        array = sbatch(self.place.path / name)
        record(self.place, **({"needs": array} if needs else {"job": array, "numbers": numbers}))
        for job, number in zip(jobs, numbers, strict=True):
            self._place(job, Queued("PENDING", "", f"{array}_{number}"))

    def _place(self, job: Job, found: Queued) -> None:
        job._ranks = Element(found.job, _state(job))  # type: ignore[assignment]
        job.started = time.monotonic()

    def _index(self, job: Job) -> int:
        """In the array."""
        if isinstance(job, NeededJob):
            return [need["signature"] for need in self.place.info()["needs"]].index(job.need.signature)
        assert isinstance(job, SweepJob)
        return job.number

    def _find(self, job: Job) -> Queued | None:
        where = self._queue.needs if isinstance(job, NeededJob) else self._queue.jobs
        return where.get(self._index(job))

    # ---- looking -----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._queue = queue(self.place)

    def _look(self) -> None:
        """End the jobs that are done, and those that have left the queue."""
        placed = [job for job in self._open if job.running and not job.ended]
        for job in placed:
            if self._done(job):
                job.end(EXIT_DONE)
        placed = [job for job in placed if not job.ended]
        # A requeued element is STOPPED as well as one that is over: only the queue knows.
        quiet = all(_state(job) == _element(job).seen for job in placed)
        if not placed or time.monotonic() - self._asked < (ASK_S if quiet else SOON_S):
            return
        self._ask()
        for job in placed:
            _element(job).seen = _state(job)
            if self._done(job):
                job.end(EXIT_DONE)
            elif self._find(job) is None:
                self._left(job)

    def _done(self, job: Job) -> bool:
        if not isinstance(job, NeededJob):
            return state_of(job.path) == "COMPLETED"
        found = needed.find(job.need)
        job.path = found or next(iter(needed.candidates(job.need)), job.path)
        return found is not None

    def _left(self, job: Job) -> None:
        """A job that is not completed is not in the queue any more."""
        element = _element(job)
        state, how = state_of(job.path), ended_as(element.job)
        if how in UNDER_WAY:  # squeue was behind
            return
        cancelled = element.stopped or how.startswith("CANCELLED")
        if state in ("FAILED", "STOPPED"):
            words = last_message(RunDirectory(job.path))
            job.end(EXIT_FAILED if state == "FAILED" else EXIT_STOPPED, words)
        elif state == "WAITING" and cancelled:
            job.end(EXIT_STOPPED, "cancelled before it began")
        elif state in ("WAITING", "DAMAGED"):
            job.end(EXIT_FAILED, f"{self._end(job, how)} before the run began")
        else:  # nobody was left to record the end
            code, words = settle(RunDirectory(job.path), -signal.SIGKILL, cancelled)
            job.end(code, f"{words}: {self._end(job, how)}")

    def _end(self, job: Job, how: str) -> str:
        """`Slurm's job 17_3 ended as OUT_OF_MEMORY`, and the end of its log."""
        name = _element(job).job
        log = self.place.path / "slurm" / f"{name}.log"
        said = ""
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = f" ({lines[-1].strip()})" if lines else ""
        return f"Slurm's job {name} ended{f' as {how}' if how else ''}{said}"

    def _bear(self, error: UserError) -> None:
        """Slurm not answering now and then is no reason to end a search of days."""
        if not self._answered:
            raise error
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self.tell(f"{error.problems[0].what}; trying again")
        elif time.monotonic() - self._silent_since > PATIENCE_S:
            raise error
        self._asked = time.monotonic()


def _element(job: Job) -> Element:
    element = job._ranks
    assert isinstance(element, Element)
    return element


def _state(job: Job) -> object:
    """What changes in a run.json when something happens to the run."""
    state = state_of(job.path)
    return state, 0 if state in ("WAITING", "DAMAGED") else len(RunDirectory(job.path).info()["attempts"])
