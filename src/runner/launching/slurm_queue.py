"""What of a sweep is in Slurm's queue: what was submitted, how it stands there, how it is taken out.

Nothing here needs Slurm's accounting.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.files import read_json, write_json
from runner.launching.rundir import now
from runner.launching.sweepdir import SweepDirectory

SCRIPT, NEEDS_SCRIPT, DRIVER_SCRIPT = "submit.sbatch", "needs.sbatch", "driver.sbatch"
SUBMISSIONS = "slurm.json"

PATIENCE_S = 60.0
"""How long a driver may take to leave the queue: Slurm gives it KillWait (30 s by default) to save."""


@dataclass(frozen=True)
class Queued:
    """An element of an array in Slurm's queue.

    Attributes:
        state: PENDING, RUNNING, COMPLETING, …
        reason: why it waits.
        job: what Slurm's commands call it: `<array>_<index>`, or `<job>` of one that is no array.
    """

    state: str
    reason: str
    job: str = ""

    def __str__(self) -> str:
        waits = self.state == "PENDING" and self.reason not in ("", "None")
        return f"{self.state.lower()}{f' ({self.reason})' if waits else ''}"


@dataclass(frozen=True)
class Queue:
    """What of one sweep is in the queue.

    Attributes:
        jobs, needs: index in the array → its place.
        driver: of a search, the job that asks Optuna.
    """

    jobs: dict[int, Queued]
    needs: dict[int, Queued]
    driver: Queued | None = None

    def __len__(self) -> int:
        return len(self.jobs) + len(self.needs) + (self.driver is not None)


def require(program: str) -> None:
    """Raise UserError where a program of Slurm's is not installed."""
    if shutil.which(program) is None:
        raise UserError(
            f"launch=slurm needs {program}, which is not installed here",
            "log in to a machine of the cluster, or let --dry-run write the script",
            "runner doctor",
        )


def sbatch(path: Path, *flags: str) -> str:
    """Submit a script; returns the job's id.

    Raises:
        UserError: Slurm refuses.
    """
    # Variables of a job that this command may itself run in would otherwise reach the new one.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    done = subprocess.run(
        ["sbatch", "--parsable", *flags, str(path)], capture_output=True, text=True, env=clean, check=False
    )
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"sbatch refuses {path}: {words}", "set launch.slurm keys to what this cluster has", "sinfo")
    return done.stdout.strip().partition(";")[0]


def record(place: SweepDirectory, **entry: Any) -> None:
    """Note what was submitted."""
    known = {"job": None, "needs": None, "numbers": [], "submitted": now()}
    write_json(place.path / SUBMISSIONS, [*submissions(place), known | entry])


def submissions(place: SweepDirectory) -> list[dict[str, Any]]:
    """What was submitted for a sweep, oldest first; nothing for one that runs here."""
    with contextlib.suppress(FileNotFoundError):
        return list(read_json(place.path / SUBMISSIONS))
    return []


def arrays(place: SweepDirectory) -> list[str]:
    """The ids of the jobs' arrays, oldest first."""
    return [r["job"] for r in submissions(place) if r["job"]]


def queue(place: SweepDirectory) -> Queue:
    """What of a sweep is in the queue; nothing, without asking, for one that was never submitted.

    Raises:
        UserError: Slurm does not answer.
    """
    noted = bool(submissions(place))
    written = any((place.path / name).is_file() for name in (SCRIPT, NEEDS_SCRIPT, DRIVER_SCRIPT))
    if not written or (not noted and shutil.which("squeue") is None):  # a dry run writes scripts too
        return Queue({}, {})
    require("squeue")
    try:
        done = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-o", "%F|%K|%T|%r|%o"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError("squeue does not answer", "is the controller up?", "scontrol ping") from error
    if done.returncode:
        raise UserError(f"squeue: {' '.join(done.stderr.split())}", "is the controller up?", "scontrol ping")
    return _sort(place, done.stdout.splitlines())


def _sort(place: SweepDirectory, lines: Sequence[str]) -> Queue:
    """Lines of squeue that are the sweep's, by script: an id may not have been noted when a kill came just then."""
    scripts = {name: str(place.path / name) for name in (SCRIPT, NEEDS_SCRIPT, DRIVER_SCRIPT)}
    records = submissions(place)
    found = Queue({}, {})
    for line in lines:
        job, index, state, reason, script = (*line.strip().split("|", 4), "")[:5]
        of = [name for name, path in scripts.items() if path == script]
        of += [SCRIPT] if job in {r["job"] for r in records} else []
        of += [NEEDS_SCRIPT] if job in {r["needs"] for r in records} else []
        if DRIVER_SCRIPT in of:
            found = Queue(found.jobs, found.needs, Queued(state, reason, job))
        elif of and index.isdigit():
            which = found.needs if NEEDS_SCRIPT in of else found.jobs
            which[int(index)] = Queued(state, reason, f"{job}_{index}")
    return found


def scancel(*jobs: str) -> None:
    """Take jobs out of the queue; running ones get TERM, and KillWait to save.

    Raises:
        UserError: Slurm refuses.
    """
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, check=False)
    # Jobs of an earlier submission may be forgotten already, which is what is wanted.
    words = [line for line in done.stderr.splitlines() if "Invalid job id" not in line]
    if done.returncode and words:
        raise UserError(f"scancel: {' '.join(words)}")


def cancel_driver(place: SweepDirectory) -> bool:
    """Stop the job that asks Optuna, if there is one, and wait until it has gone: it would submit further trials.

    Raises:
        UserError: Slurm does not answer, or refuses, or the driver does not go.
    """
    driver = queue(place).driver
    if driver is None:
        return False
    scancel(driver.job)
    deadline = time.monotonic() + PATIENCE_S
    while queue(place).driver is not None:
        if time.monotonic() > deadline:
            see = f"scontrol show job {driver.job}"
            raise UserError(f"the search's driver, Slurm's job {driver.job}, does not end", "", see)
        time.sleep(0.5)
    return True


def cancel(place: SweepDirectory) -> int:
    """Cancel whatever of a sweep is in the queue; returns how many jobs that were.

    Raises:
        UserError: Slurm does not answer, or refuses.
    """
    found = queue(place)
    ids = dict.fromkeys(q.job.partition("_")[0] for q in (*found.needs.values(), *found.jobs.values()))
    if ids:
        scancel(*ids)
    return len(found)


def ended_as(job: str) -> str:
    """How Slurm says that a job ended, such as CANCELLED or OUT_OF_MEMORY; "" where it has forgotten it."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30, check=False)
        for word in done.stdout.split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
    return ""
