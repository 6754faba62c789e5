"""One element of a SLURM array: one job of a sweep, gone on with after every requeue.

    srun python -m runner.launching.element SWEEP_DIR INDEX [--needs]

Runs once on every node of the job; the one on the first node holds the run's directory. Stop signals reach every
process of the step. What they mean is decided here, after the workers have saved:

* USR2, shortly before the time limit: the job is put back into the queue.
* TERM while Slurm still takes the job for running, as in the grace time of a preemption: the same.
* TERM because the job was cancelled or requeued: nothing more to do.

A node that dies sends nothing. Slurm starts the job again elsewhere, and the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.launching import needs as needed
from runner.launching.locks import held
from runner.launching.needs import Need
from runner.launching.pool import LOG, Job, last_message
from runner.launching.ranks import PARENT, Ranks, environments, settle, worker_command
from runner.launching.rundir import RunDirectory
from runner.launching.schedule import NeededJob, SweepJob, collect_needs
from runner.launching.signals import quiet_signals
from runner.launching.slurm_queue import ended_as
from runner.launching.sweepdir import SweepDirectory

LOCK_PATIENCE_S = 300.0
"""Locks of a dead node live on for a while on network file systems."""


def main(argv: list[str]) -> int:
    """Run the element; returns the exit code of the step."""
    place, index = SweepDirectory.open(Path(argv[0])), int(argv[1])
    with quiet_signals() as received:
        try:
            job = find_job(place, index, needs="--needs" in argv[2:])
            if node() > 0:
                return _follow(job, received)
            return _lead(job, received)
        except (UserError, OSError) as error:
            say(str(error))
            return EXIT_FAILED


def find_job(place: SweepDirectory, index: int, needs: bool) -> SweepJob | NeededJob:
    """The job that the array's index means."""
    info = place.info()
    if needs:
        listed = info["needs"][index]
        config = place.need_config(listed["signature"])
        need = Need(listed["role"], tuple(listed["tasks"]), config, listed["signature"])
        fixed = info["fixed"] if info["verb"] == "train" else []  # a search has them among its arguments
        job = NeededJob(need, ["train", *fixed, *info["arguments"]])
        for other in needed.needs(config):  # another element trains them: wait for it
            while needed.find(other) is None and held(needed.lock_path(other)):
                time.sleep(1.0)
        return job
    entry = next(e for e in place.entries() if e.number == index)
    job = SweepJob(place, entry, place.config(entry), ["train", *entry.overrides, *info["arguments"]])
    if info["verb"] == "tune":
        job.more["trial"] = index
    collect_needs([(job, job.config)], job.argv)
    for wanted in job.needs:  # their own array has ended: what is not there has failed
        path = needed.find(wanted.need)
        wanted.path = path or wanted.path
        wanted.end(EXIT_DONE if path else EXIT_FAILED, "" if path else "it did not complete")
    return job


# ---- the first node ------------------------------------------------------------------------------------------------


def _lead(job: SweepJob | NeededJob, received: list[int]) -> int:
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempts = job.config["launch"]["slurm"]["max_attempts"]
    say(f"{job.label}, attempt {restarts + 1} of {attempts}, on {socket.gethostname()}")
    run = _open(job, received)
    if run is None:
        say(f"{job.state}{f': {job.message}' if job.message else ''}: {job.path}")
        return job.code if job.code is not None else EXIT_STOPPED
    if restarts >= attempts:
        run.update(status="FAILED", message=f"{attempts} attempts were not enough (launch.slurm.max_attempts)")
        job.end(EXIT_FAILED, run.info()["message"])
        say(f"{job.message}: {run.path}")
        return EXIT_FAILED
    if os.environ.get("SLURM_JOB_ID"):
        run.update(slurm={"job": os.environ["SLURM_JOB_ID"], "array": os.environ.get("SLURM_ARRAY_JOB_ID")})
    code, stopped = _attend(run.path, job.config, received)
    code, words = settle(run, code, stopped)
    job.end(code, words or ("" if code == EXIT_DONE else last_message(run)))
    say(f"{job.state}{f': {job.message}' if job.message else ''}: {run.path}")
    if code == EXIT_STOPPED:
        if goes_on(received):
            if restarts + 1 < attempts:
                requeue()
            else:
                say(f"not requeued: launch.slurm.max_attempts={attempts} are used up; `runner resume` submits it anew")
        # A code other than 0 would take the elements on the other nodes down while they still save.
        return EXIT_STOPPED if nodes() == 1 else EXIT_DONE
    return code


def _open(job: SweepJob | NeededJob, received: list[int]) -> RunDirectory | None:
    """Take the job's directory, waiting for a process that is about to leave it."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        job.elsewhere = False  # what another process made of it is no reason not to go on with it
        run = job.open()
        if run is not None or job.ended:
            return run
        if received or time.monotonic() > deadline:
            job.message = "another process works on it"
            return None
        time.sleep(0.5)


def _attend(path: Path, config: Mapping[str, Any], received: list[int]) -> tuple[int, bool]:
    """Start this node's workers, hand stop signals on, wait."""
    with open(path / LOG, "ab") as log:
        ranks, handed = Ranks(worker_command(path), node_environments(config), log), 0
        while (code := ranks.wait(0.1)) is None:
            for number in received[handed:]:
                ranks.send(number)
                handed += 1
    return code, bool(received)


def goes_on(received: list[int]) -> bool:
    """Whether a stop signal means that the job is to go on later: not when somebody has cancelled it meanwhile."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job or not {signal.SIGUSR2, signal.SIGTERM} & set(received):
        return False
    state = ended_as(job)
    return state == "RUNNING" or (signal.SIGUSR2 in received and state == "")  # a controller that does not answer


def requeue() -> None:
    """Put this process's job back into the queue."""
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGINT):  # requeuing ends this process too
        signal.signal(number, signal.SIG_IGN)
    job = os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"cannot be requeued ({' '.join(done.stderr.split())}); `runner resume` submits it anew")
    else:
        say("requeued")


# ---- several nodes -------------------------------------------------------------------------------------------------


def nodes() -> int:
    """How many nodes the job has."""
    return int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_JOB_NUM_NODES") or 1)


def node() -> int:
    """This node among them, from 0."""
    return int(os.environ.get("SLURM_NODEID", "0"))


def node_environments(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """The environment of every rank on this node: torchrun's variables over all nodes, which Accelerate reads."""
    count = config["launch"]["num_processes"]
    if nodes() == 1:
        return environments(config)
    if count % nodes():
        raise UserError(f"launch.num_processes={count} cannot be divided by launch.slurm.nodes={nodes()}")
    here = count // nodes()
    port = config["launch"]["port"] or 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(here)}
    common |= {"MASTER_ADDR": first_host(), "MASTER_PORT": str(port)}
    base = environments({**config, "launch": {**config["launch"], "num_processes": 1}})[0]
    return [base | common | {"RANK": str(node() * here + n), "LOCAL_RANK": str(n)} for n in range(here)]


def first_host() -> str:
    """The address of the job's first node, by which Slurm's own daemons reach it; its name where they do the same."""
    listed = os.environ["SLURM_JOB_NODELIST"]
    done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True)
    name = done.stdout.split()[0]
    done = subprocess.run(["scontrol", "-o", "show", "node", name], capture_output=True, text=True, check=False)
    words = [word.partition("=")[2] for word in done.stdout.split() if word.startswith("NodeAddr=")]
    return words[0] if words else name


def _follow(job: Job, received: list[int]) -> int:
    """The other nodes: their workers join those of the first one, which holds the directory."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not (job.path / "run.json").exists():
        if received or time.monotonic() > deadline:
            return EXIT_STOPPED
        time.sleep(0.2)
    code, _ = _attend(job.path, job.config, received)
    return EXIT_DONE if code == EXIT_STOPPED else code


def say(text: str) -> None:
    """A line in the Slurm log."""
    print(f"runner: {text}", flush=True)


if __name__ == "__main__":
    os.environ.pop(PARENT, None)
    sys.exit(main(sys.argv[1:]))
