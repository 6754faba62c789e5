"""A sweep through Slurm: one array of jobs from a script that a person can read.

Each element of the array runs `runner.launching.element`, which goes on in the job's own directory however often it is
requeued. `runner.launching.slurm_queue` asks Slurm how they stand.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import EXIT_DONE, UserError
from runner.files import write_atomic
from runner.launching.needs import find
from runner.launching.schedule import SweepJob, collect_needs
from runner.launching.slurm_queue import DRIVER_SCRIPT, NEEDS_SCRIPT, SCRIPT, Queue, queue, record, require, sbatch
from runner.launching.sweepdir import Entry, SweepDirectory
from runner.tracking.table import shell_path

DRIVER = "RUNNER_DRIVER"
"""Environment variable: this front end is the driver of a search, in a job of its own."""


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
        require("sbatch")
    waiting = Queue({}, {}) if dry_run else queue(place)
    configs = {entry.number: place.config(entry) for entry in entries}
    problem = _unlike([config["launch"] for config in configs.values()])
    if problem:
        raise UserError(problem, "an array asks for the same resources for all of its jobs: submit two sweeps")
    done = [e for e in entries if place.state(e) == "COMPLETED"]
    todo = [e for e in entries if e not in done and e.number not in waiting.jobs]
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
    queued = {q.job.partition("_")[0] for number, q in waiting.needs.items() if number in missing}
    missing = [number for number in missing if number not in waiting.needs]
    numbers = [entry.number for entry in todo]
    write_scripts(place, launch, numbers, missing)
    if dry_run:
        _tell_dry(place, bool(missing))
        return EXIT_DONE
    needs_id = sbatch(place.path / NEEDS_SCRIPT) if missing else None
    before = ":".join(sorted(queued | ({needs_id} if needs_id else set())))
    # A failed baseline only costs Δm, so the jobs start when the needed runs have ended, not only when all went well.
    job_id = sbatch(place.path / SCRIPT, *([f"--dependency=afterany:{before}"] if before else []))
    record(place, job=job_id, needs=needs_id, numbers=numbers)
    if needs_id:
        print(f"submitted array {needs_id}: {len(missing)} needed runs")
    print(f"submitted array {job_id}: {len(todo)} jobs")
    tell_verbs(place)
    return EXIT_DONE


def tell_verbs(place: SweepDirectory) -> None:
    """How to look after what was submitted."""
    for verb in ("status", "cancel", "resume"):
        print(f"  {verb:<8} runner {verb} {shell_path(place.path)}")


def write_scripts(
    place: SweepDirectory, launch: Mapping[str, Any], numbers: Sequence[int], needs: Sequence[int]
) -> None:
    """The batch scripts of jobs and of needed runs, where there are any, and the folder for their logs."""
    (place.path / "slurm").mkdir(parents=True, exist_ok=True)
    if needs:
        write_atomic(place.path / NEEDS_SCRIPT, script(place, launch, needs, needs=True))
    if numbers:
        write_atomic(place.path / SCRIPT, script(place, launch, numbers))


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
    lines = _directives(place, asked, flags, "%A_%a.log")
    python = shlex.quote(asked["python"] or sys.executable)
    step = ["srun --kill-on-bad-exit=1" + (f" --cpus-per-task={per_node}" if per_node else "")]
    step += [asked["container"]] if asked["container"] else []
    step += [f'{python} -m runner.launching.element {shlex.quote(str(place.path))} "$SLURM_ARRAY_TASK_ID"']
    what = "the runs that its jobs need (baselines, experts)" if needs else "the jobs of a sweep, or trials of a search"
    head = [
        "#!/bin/bash",
        f"# {place.id}: {what}, one element of an array each.",
        f"# `runner … launch=slurm` wrote this; by hand: sbatch {shlex.quote(str(place.path / name))}",
        "# An element goes on in its run's own directory, however often it is requeued: before the time limit",
        f"# (USR2, {asked['grace']} s ahead), on preemption and on `scontrol requeue` it saves first.",
    ]
    return _join(head, lines, asked, [" \\\n  ".join(step) + (" --needs" if needs else "")])


def driver_script(place: SweepDirectory, launch: Mapping[str, Any]) -> str:
    """The batch script of a search's driver: one core that asks Optuna and submits the trials.

    It runs with the interpreter that submits it, outside of any container, because it needs Slurm's own commands.
    """
    asked = launch["slurm"]
    flags = {
        "job-name": f"{place.id}-driver",
        "partition": asked["partition"],
        "account": asked["account"],
        "qos": asked["qos"],
        "time": asked["time"],
        "ntasks": 1,
        "cpus-per-task": 1,
        "mem": "2G",
    }
    by_hand = shlex.quote(str(place.path / DRIVER_SCRIPT))
    head = [
        "#!/bin/bash",
        f"# Search {place.id}: its driver, which asks Optuna for trials and submits them with {SCRIPT}.",
        f"# `runner tune … tune.driver=slurm` wrote this; by hand: sbatch {by_hand}",
        f"# Before its time limit (USR2, {asked['grace']} s ahead) it is requeued; trials go on meanwhile.",
    ]
    command = f"srun --ntasks=1 {shlex.quote(sys.executable)} -m runner resume {shlex.quote(str(place.path))}"
    body = [f"export {DRIVER}=1  # do the work, do not submit it again", command]
    lines = _directives(place, {**asked, "extra": []}, flags, "driver-%j.log")  # such as --exclusive: meant for trials
    return _join(head, lines, asked, body)


def _directives(place: SweepDirectory, asked: Mapping[str, Any], flags: Mapping[str, object], log: str) -> list[str]:
    """The #SBATCH lines."""
    return [
        *(f"#SBATCH --{flag}={value}" for flag, value in flags.items() if value is not None),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=USR2@{asked['grace']}",
        f"#SBATCH --output={place.path / 'slurm' / log}",
        *(f"#SBATCH {flag}" for flag in asked["extra"]),
    ]


def _join(head: list[str], lines: list[str], asked: Mapping[str, Any], body: list[str]) -> str:
    trap = ["", "trap : TERM  # the step gets it too; it saves and ends, and this script waits for it"]
    setup = ["", *asked["setup"]] if asked["setup"] else []
    return "\n".join([*head, *lines, *trap, *setup, "", *body]) + "\n"


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
