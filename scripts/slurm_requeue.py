"""Disturb every element of a Slurm array at a random moment and compare each with an undisturbed run, bit for bit.

    sudo scripts/slurm_local.sh start
    python scripts/slurm_requeue.py --out requeue --jobs 12

Trains the sweep once here, undisturbed, and once through Slurm, where each element is struck once or more, in turn by

* requeue   `scontrol requeue`, as an operator would
* limit     USR2, as Slurm sends it before the time limit: the job requeues itself
* preempt   TERM while the job goes on running, as in the grace time of a preemption
* node      SIGKILL of all that runs on the machine below slurmstepd and of itself, then `scontrol update … state=down`

Reports, for every element: how often it was started, whether the final weights and the metrics are the same as those of
the undisturbed run, whether a step is missing or there twice, and how many W&B ids there are. Exits 0 when all is well.
A dead node takes the other jobs on it down as well, which counts as a strike for those.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

TINY = [
    "mixture=rooms", "mixture.size=[32,32]", "mixture.train=48", "mixture.validation=8", "mixture.test=8",
    "backbone=resnet", "backbone.size=tiny", "trainer.batch_size=8", "trainer.num_workers=0", "trainer.panels=0",
    "trainer.max_steps=120", "trainer.checkpoint_every=10", "trainer.eval_every=40", "trainer.log_every=2",
    "launch.threads=1", "baseline=none",
]  # fmt: skip
KINDS = ("requeue", "limit", "preempt", "node")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--at-a-time", type=int, default=1, help="jobs at a time in the undisturbed sweep")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for the whole array")
    parser.add_argument("overrides", nargs="*", help="what `runner train` takes besides, after --")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    shared = [*TINY, *arguments.overrides, f"seed=range({arguments.jobs})"]
    began = time.monotonic()
    runner("train", "-m", *shared, f"launch.jobs={arguments.at_a_time}", f"output_dir={out / 'undisturbed'}")
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)

    began = time.monotonic()
    slurm = ["launch=slurm", "launch.slurm.cpus=1", "launch.slurm.grace=60", "launch.slurm.time=60"]
    runner("train", "-m", *shared, *slurm, f"output_dir={out / 'disturbed'}")
    place = next((out / "disturbed" / "sweeps").iterdir())
    strikes = disturb(place, random.Random(arguments.seed), time.monotonic() + arguments.timeout)
    print(f"disturbed: {time.monotonic() - began:.0f} s", flush=True)
    calm = next((out / "undisturbed" / "sweeps").iterdir())
    good = [compare(calm / job["directory"], place / job["directory"], strikes[job["number"]]) for job in jobs(place)]
    print(f"{sum(good)} of {len(good)} complete, identical, no step lost or repeated, one W&B id each")
    return 0 if all(good) else 1


def runner(*arguments: str) -> None:
    """Run the command line, quietly."""
    command = [sys.executable, "-m", "runner", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def jobs(place: Path) -> list[dict]:
    """The jobs of a sweep."""
    return json.loads((place / "sweep.json").read_text())["jobs"]


def disturb(place: Path, chance: random.Random, deadline: float) -> dict[int, list[str]]:
    """Strike every element once, at a random moment of its first attempt; wait until the array has left the queue."""
    array = json.loads((place / "slurm.json").read_text())[-1]["job"]
    directories = {job["number"]: place / job["directory"] for job in jobs(place)}
    strikes: dict[int, list[str]] = {number: [] for number in directories}
    config = json.loads(next((place / "configs").glob("*.json")).read_text())
    last = int(config["trainer"]["max_steps"] * 0.7)
    plan = {number: (KINDS[number % len(KINDS)], chance.randint(1, last)) for number in directories}
    while time.monotonic() < deadline:
        listed = lines("squeue", "-h", "-r", "-j", array, "-o", "%K %T %A")
        if not listed:
            return strikes
        for number, state, job in (line.split() for line in listed):
            index = int(number)
            kind, step = plan[index]
            if state != "RUNNING" or strikes[index] or last_step(directories[index]) < step:
                continue
            print(f"  element {index}: {kind} after step {last_step(directories[index])}", flush=True)
            for other in struck(kind, index, listed):
                strikes[other].append(kind if other == index else "node (of another)")
            strike(kind, job)
        time.sleep(0.05)
    raise SystemExit("the array did not end in time")


def struck(kind: str, index: int, listed: list[str]) -> list[int]:
    """Whom a strike hits."""
    running = [int(line.split()[0]) for line in listed if line.split()[1] == "RUNNING"]
    return running if kind == "node" else [index]


def strike(kind: str, job: str) -> None:
    """Do it, without waiting for Slurm: what is asked of a job that is just ending may take a minute to be answered."""
    if kind == "requeue":
        subprocess.Popen(["scontrol", "requeue", job])
    elif kind in ("limit", "preempt"):
        number = "USR2" if kind == "limit" else "TERM"
        subprocess.Popen(["scancel", f"--signal={number}", job])
    else:
        node = ",".join(lines("sinfo", "-h", "-N", "-o", "%N"))  # all of them are this machine
        for pid in node_processes():
            kill(pid)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=died"], check=True)
        time.sleep(3)
        # It may be back already, because its slurmd still answers; then there is nothing to resume.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)


def node_processes() -> list[int]:
    """Every slurmstepd of this machine, and then everything below them.

    In this order nobody is left who could report that a job was killed: of a machine that died, none would be.
    """
    parents: dict[int, int] = {}
    steps = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        parents[int(folder.name)] = int(rest[1])
        if name.startswith("slurmstepd"):
            steps.append(int(folder.name))
    found = []
    for pid in parents:
        above = pid
        while above in parents and above not in steps:
            above = parents[above]
        if above in steps and pid not in steps:
            found.append(pid)
    return [*steps, *sorted(found, reverse=True)]


def kill(pid: int) -> None:
    """SIGKILL; gone is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def last_step(run: Path) -> int:
    """The newest step in metrics.jsonl."""
    try:
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def lines(*command: str) -> list[str]:
    """What a command prints."""
    return subprocess.run(list(command), capture_output=True, text=True, check=False).stdout.splitlines()


def compare(calm: Path, run: Path, strikes: list[str]) -> bool:
    """One element against its undisturbed twin; prints a line."""
    info = json.loads((run / "run.json").read_text())
    checks = {"completed": info["status"] == "COMPLETED"}
    if checks["completed"]:
        first, second = (load_file(p / "checkpoints/latest/model.safetensors") for p in (calm, run))
        checks["weights"] = all(torch.equal(first[name], second[name]) for name in first)
        rows = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (calm, run)]
        keys = [[(r["step"], r["split"], r["task"], r["metric"]) for r in some] for some in rows]
        checks["no step twice"] = len(keys[1]) == len(set(keys[1]))
        checks["no step lost"] = set(keys[0]) == set(keys[1])
        values = [[{**r, "attempt": 0} for r in some if r["metric"] != "examples_per_s"] for some in rows]
        checks["metrics"] = values[0] == values[1]
        ids = {path.name.rpartition("-run-")[2].split("-", 1)[1] for path in run.glob("wandb/offline-run-*")}
        checks["one W&B id"] = ids == {info["wandb_id"]}
    checks["struck"] = bool(strikes) or len(info["attempts"]) > 1
    bad = [name for name, good in checks.items() if not good]
    began = [attempt["from_step"] for attempt in info["attempts"]]
    print(f"  {run.name}: {', '.join(strikes)}; attempts from steps {began}: {'ok' if not bad else f'WRONG: {bad}'}")
    return not bad


if __name__ == "__main__":
    sys.exit(main())
