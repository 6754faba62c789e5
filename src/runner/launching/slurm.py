"""A sweep through Slurm: one array of jobs from a script that a person can read, its queue, its end.

Each element of the array runs `runner.launching.element`, which goes on in the job's own directory however often it is
requeued. Nothing here needs Slurm's accounting.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import EXIT_DONE, UserError
from runner.files import read_json, write_atomic, write_json
from runner.launching.needs import find
from runner.launching.rundir import now
from runner.launching.schedule import SweepJob, collect_needs
from runner.launching.sweepdir import Entry, SweepDirectory
from runner.tracking.table import shell_path

SCRIPT, NEEDS_SCRIPT, SUBMISSIONS = "submit.sbatch", "needs.sbatch", "slurm.json"


@dataclass(frozen=True)
class Queued:
    """An element of an array in Slurm's queue.

    Attributes:
        state: PENDING, RUNNING, COMPLETING, …
        reason: why it waits.
    """

    state: str
    reason: str

    def __str__(self) -> str:
        waits = self.state == "PENDING" and self.reason not in ("", "None")
        return f"{self.state.lower()}{f' ({self.reason})' if waits else ''}"


# ---- submitting ------------------------------------------------------------------------------------------------------


def submit(
    place: SweepDirectory,
    entries: Sequence[Entry],
    launch: Mapping[str, Any],
    *,
    dry_run: bool = False,
    notice: str = "",
) -> int:
    """Submit the jobs that are neither completed nor in the queue as one array; runs that they need as another before.

    Args:
        place: the sweep. entries: its jobs. launch: the settings of all.
        dry_run: write the scripts and stop.
        notice: a line to print with the opening.

    Raises:
        UserError: there is no Slurm here, or it refuses.
    """
    if not dry_run:
        _require("sbatch")
    waiting = {} if dry_run else queue(place)
    configs = {entry.number: place.config(entry) for entry in entries}
    problem = _unlike([config["launch"] for config in configs.values()])
    if problem:
        raise UserError(problem, "an array asks for the same resources for all of its jobs: submit two sweeps")
    done = [e for e in entries if place.state(e) == "COMPLETED"]
    todo = [e for e in entries if e not in done and e.number not in waiting]
    counts = f"{len(entries)} jobs, {len(done)} completed, {len(entries) - len(done) - len(todo)} in the queue"
    print(f"sweep {place.id}: {counts}\n  directory {shell_path(place.path)}")
    if not todo:
        print("nothing is left to submit")
        return EXIT_DONE
    if notice:
        print(notice)
    jobs = [SweepJob(place, entry, configs[entry.number], []) for entry in todo]
    wanted = collect_needs([(job, job.config) for job in jobs], place.info()["argv"])
    place.add_needs([(w.need.role, w.need.tasks, w.need.signature, w.need.config) for w in wanted])
    places = {need["signature"]: number for number, need in enumerate(place.info()["needs"])}
    missing = sorted(places[w.need.signature] for w in wanted if find(w.need) is None)
    (place.path / "slurm").mkdir(exist_ok=True)
    if missing:
        write_atomic(place.path / NEEDS_SCRIPT, script(place, launch, missing, needs=True))
    write_atomic(place.path / SCRIPT, script(place, launch, [entry.number for entry in todo]))
    if dry_run:
        _tell_dry(place, bool(missing))
        return EXIT_DONE
    needs_id = _sbatch(place.path / NEEDS_SCRIPT) if missing else None
    # A failed baseline only costs Δm, so the jobs start when the needed runs have ended, not only when all went well.
    job_id = _sbatch(place.path / SCRIPT, *([f"--dependency=afterany:{needs_id}"] if needs_id else []))
    numbers = [entry.number for entry in todo]
    record = {"job": job_id, "needs": needs_id, "numbers": numbers, "submitted": now()}
    write_json(place.path / SUBMISSIONS, [*submissions(place), record])
    if needs_id:
        print(f"submitted array {needs_id}: {len(missing)} needed runs")
    print(f"submitted array {job_id}: {len(todo)} jobs")
    for verb in ("status", "cancel", "resume"):
        print(f"  {verb:<8} runner {verb} {shell_path(place.path)}")
    return EXIT_DONE


def script(place: SweepDirectory, launch: Mapping[str, Any], numbers: Sequence[int], needs: bool = False) -> str:
    """The batch script of an array.

    Args:
        place: the sweep. launch: the settings of its jobs.
        numbers: indices in the array. needs: of needed runs instead of jobs.
    """
    asked = launch["slurm"]
    nodes, processes = asked["nodes"], launch["num_processes"]
    cpus = asked["cpus"] or launch["threads"]
    per_node = cpus * max(1, processes // nodes) if cpus else None
    limit = f"%{asked['max_parallel']}" if asked["max_parallel"] else ""
    name = NEEDS_SCRIPT if needs else SCRIPT
    flags = {
        "job-name": f"{place.id}{'-needs' if needs else ''}",
        "array": f"{compress(numbers)}{limit}",
        "partition": asked["partition"],
        "account": asked["account"],
        "qos": asked["qos"],
        "constraint": asked["constraint"],
        "time": asked["time"],
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": per_node,
        "mem": asked["memory"],
        "gpus-per-node": asked["gpus"],
    }
    lines = [f"#SBATCH --{flag}={value}" for flag, value in flags.items() if value is not None]
    lines += [
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=USR2@{asked['grace']}",
        f"#SBATCH --output={place.path / 'slurm' / '%A_%a.log'}",
        *(f"#SBATCH {flag}" for flag in asked["extra"]),
    ]
    python = shlex.quote(asked["python"] or sys.executable)
    step = ["srun --kill-on-bad-exit=1" + (f" --cpus-per-task={per_node}" if per_node else "")]
    step += [asked["container"]] if asked["container"] else []
    step += [f'{python} -m runner.launching.element {shlex.quote(str(place.path))} "$SLURM_ARRAY_TASK_ID"']
    what = "the runs that its jobs need (baselines, experts)" if needs else "its jobs"
    head = [
        "#!/bin/bash",
        f"# Sweep {place.id}: {what}, one element of an array each.",
        f"# `runner train … launch=slurm` wrote this; by hand: sbatch {shlex.quote(str(place.path / name))}",
        "# An element goes on in its run's own directory, however often it is requeued: before the time limit",
        f"# (USR2, {asked['grace']} s ahead), on preemption and on `scontrol requeue` it saves first.",
    ]
    body = ["", "trap : TERM  # the step gets it too; it saves and ends, and this script waits for it"]
    body += ["", *asked["setup"]] if asked["setup"] else []
    body += ["", " \\\n  ".join(step) + (" --needs" if needs else "")]
    return "\n".join([*head, *lines, *body]) + "\n"


def compress(numbers: Sequence[int]) -> str:
    """0,1,2,5 as `0-2,5`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _unlike(launches: Sequence[Mapping[str, Any]]) -> str:
    """What differs between the settings of jobs that are to share one array."""
    for key in ("num_processes", "threads", "slurm"):
        if any(launch[key] != launches[0][key] for launch in launches):
            return f"launch.{key} differs between the jobs of the sweep"
    return ""


def _tell_dry(place: SweepDirectory, needs: bool) -> None:
    print("\nwould submit:")
    if needs:
        print(f"  needs=$(sbatch --parsable {shell_path(place.path / NEEDS_SCRIPT)})")
    dependency = "--dependency=afterany:$needs " if needs else ""
    print(f"  sbatch {dependency}{shell_path(place.path / SCRIPT)}\n\n{SCRIPT}:")
    print((place.path / SCRIPT).read_text(encoding="utf-8"), end="")


def _sbatch(path: Path, *flags: str) -> str:
    # Variables of a job that this command may itself run in would otherwise reach the new one.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    done = subprocess.run(
        ["sbatch", "--parsable", *flags, str(path)], capture_output=True, text=True, env=clean, check=False
    )
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"sbatch refuses {path}: {words}", "set launch.slurm keys to what this cluster has", "sinfo")
    return done.stdout.strip().partition(";")[0]


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(
            f"launch=slurm needs {program}, which is not installed here",
            "log in to a machine of the cluster, or let --dry-run write the script",
            "runner doctor",
        )


# ---- the queue -------------------------------------------------------------------------------------------------------


def submissions(place: SweepDirectory) -> list[dict[str, Any]]:
    """What was submitted for a sweep, oldest first; nothing for one that runs here."""
    with contextlib.suppress(FileNotFoundError):
        return list(read_json(place.path / SUBMISSIONS))
    return []


def queue(place: SweepDirectory) -> dict[int, Queued]:
    """Number of a job → its place in Slurm's queue, for those that are in it.

    Raises:
        UserError: Slurm does not answer.
    """
    return _queue({record["job"] for record in submissions(place)})


def needs_queue(place: SweepDirectory) -> dict[int, Queued]:
    """The same for the needed runs."""
    return _queue({record["needs"] for record in submissions(place) if record["needs"]})


def _queue(ids: set[str]) -> dict[int, Queued]:
    if not ids:
        return {}
    _require("squeue")
    try:
        done = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-o", "%F|%K|%T|%r"], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError("squeue does not answer", "is the controller up?", "scontrol ping") from error
    if done.returncode:
        raise UserError(f"squeue: {' '.join(done.stderr.split())}", "is the controller up?", "scontrol ping")
    found = {}
    for line in done.stdout.splitlines():
        job, index, state, reason = line.strip().split("|", 3)
        if job in ids and index.isdigit():
            found[int(index)] = Queued(state, reason)
    return found


def cancel(place: SweepDirectory) -> int:
    """Cancel whatever of a sweep is in the queue; returns how many jobs that were.

    Raises:
        UserError: Slurm does not answer, or refuses.
    """
    records = submissions(place)
    count = len(queue(place)) + len(needs_queue(place))
    ids = [i for record in records for i in (record["needs"], record["job"]) if i]
    if not count:
        return 0
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    # Jobs of an earlier submission may be forgotten already, which is what is wanted.
    words = [line for line in done.stderr.splitlines() if "Invalid job id" not in line]
    if done.returncode and words:
        raise UserError(f"scancel: {' '.join(words)}")
    return count
