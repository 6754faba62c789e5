"""Kill a run with SIGKILL at random moments, resume it each time, and compare its final bits with an undisturbed run.

    python scripts/kill_resume.py --kills 25 --out kills -- +experiment=demo trainer.checkpoint_every=3

Everything behind `--` is what `runner train` takes. Of four kills one strikes during start-up, one anywhere in
training, and two wait until a checkpoint is being written and strike inside it. Exits 0 when weights, metrics and
results are the same, 1 when they are not.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for both runs")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds an attempt may train")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="+", help="what `runner train` takes, after --")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    plain, killed = arguments.out / "undisturbed", arguments.out / "killed"

    if train(arguments.overrides, plain).wait() != 0:
        print("the undisturbed run failed", file=sys.stderr)
        return 1
    chance = random.Random(arguments.seed)
    done = inside = 0
    while done < arguments.kills:
        process = train(arguments.overrides, killed) if not (killed / "run.json").exists() else resume(killed)
        struck_inside = strike(
            process, killed, chance, arguments.longest, ("start", "write", "train", "write")[done % 4]
        )
        if process.wait() == 0:
            print("the run ended before all kills: give it more steps, or a smaller --longest", file=sys.stderr)
            break
        done += 1
        inside += struck_inside
        print(
            f"kill {done}: {'inside a checkpoint write' if struck_inside else 'anywhere'}, newest {newest(killed)}",
            flush=True,
        )
    if not completed(killed) and resume(killed).wait() != 0:
        print("the killed run did not complete", file=sys.stderr)
        return 1
    same = compare(plain, killed)
    print(
        f"{done} kills, {inside} of them inside a checkpoint write, {attempts(killed)} attempts: "
        + ("identical" if same else "DIFFERENT")
    )
    return 0 if same else 1


def train(overrides: list[str], run_dir: Path) -> subprocess.Popen[bytes]:
    """Start `runner train` in a pinned directory, in a process group of its own."""
    return start("train", *overrides, f"run_dir={run_dir.resolve()}")


def resume(run_dir: Path) -> subprocess.Popen[bytes]:
    """Start `runner resume`."""
    return start("resume", str(run_dir))


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A quiet child."""
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def strike(process: subprocess.Popen[bytes], run_dir: Path, chance: random.Random, longest: float, when: str) -> bool:
    """SIGKILL the worker (and then the front end) at a random moment; True if a checkpoint was being written.

    Args:
        when: "start" (before the loop), "train" (up to `longest` seconds into it), or "write" (the same, and then
            inside a checkpoint).
    """
    left_over = writes(run_dir)  # of the kill before; the run sweeps it up when it comes to that step again
    before = attempts(run_dir)
    began = time.monotonic()
    patience = chance.uniform(0.2, 5) if when == "start" else 120
    while process.poll() is None and attempts(run_dir) == before and time.monotonic() < began + patience:
        time.sleep(0.002)
    deadline = time.monotonic() + (0 if when == "start" else chance.uniform(0.1, longest))
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    while when == "write" and process.poll() is None and not writes(run_dir) - left_over:
        time.sleep(0.0005)
    if when == "write":
        time.sleep(chance.uniform(0, 0.01))
    inside = bool(writes(run_dir) - left_over)
    for child in children(process.pid):
        kill(child)
    kill(process.pid)
    return inside


def writes(run_dir: Path) -> set[tuple[str, int]]:
    """The checkpoints that have a temporary name now: (name, inode)."""
    try:
        return {(p.name, p.stat().st_ino) for p in (run_dir / "checkpoints").iterdir() if p.name.startswith(".writing")}
    except OSError:
        return set()


def attempts(run_dir: Path) -> int:
    """How many workers have entered the loop."""
    try:
        return len(json.loads((run_dir / "run.json").read_text())["attempts"])
    except (OSError, ValueError):
        return 0


def children(pid: int) -> list[int]:
    """Direct children of a process, all threads of it asked."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return found
    return [grandchild for child in found for grandchild in children(child)] + found


def kill(pid: int) -> None:
    """SIGKILL; gone is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def newest(run_dir: Path) -> str:
    """Name of the newest finished checkpoint."""
    names = sorted(p.parent.name for p in run_dir.glob("checkpoints/step-*/DONE"))
    return names[-1] if names else "none"


def completed(run_dir: Path) -> bool:
    """Whether the run says COMPLETED."""
    return json.loads((run_dir / "run.json").read_text())["status"] == "COMPLETED"


def compare(a: Path, b: Path) -> bool:
    """Final weights bit for bit, metrics row for row (but for throughput and attempts), test results."""
    first, second = (load_file(run / "checkpoints/latest/model.safetensors") for run in (a, b))
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    timed = ("examples_per_s", "solver_share")
    tables = []
    for run in (a, b):
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        tables.append([{k: v for k, v in row.items() if k != "attempt"} for row in lines if row["metric"] not in timed])
    results = [json.loads((run / "result.json").read_text())["tasks"] for run in (a, b)]
    for what, same in (
        ("weights", not differing),
        ("metrics", tables[0] == tables[1]),
        ("results", results[0] == results[1]),
    ):
        print(f"{what}: {'identical' if same else 'DIFFERENT'}")
    return not differing and tables[0] == tables[1] and results[0] == results[1]


if __name__ == "__main__":
    sys.exit(main())
