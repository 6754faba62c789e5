"""What a sweep costs beside its jobs: 16 tiny runs, two at a time, and the same command again.

    python scripts/bench/sweep.py                 # bars: at most 2 s a job; 3 s for the second time
    python scripts/bench/sweep.py --jobs 4 --at-a-time 1
    python scripts/bench/sweep.py --points 300    # only composing and checking so many jobs

A job's own work is what its worker process takes from its first instruction (imports, data, training, result) to its
last; the rest of the wall time, divided by the jobs, is overhead: composing, checking, claiming directories, starting
processes, noticing their end. With k jobs at a time the work is divided by k, as if the pool were always full.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

TINY = [
    "mixture=rooms", "mixture.size=[32,32]", "mixture.train=16", "mixture.validation=8", "mixture.test=8",
    "backbone=resnet", "backbone.size=tiny", "trainer.batch_size=8", "trainer.max_steps=4", "trainer.num_workers=0",
    "trainer.panels=0", "trainer.checkpoint_every=null", "trainer.eval_every=null", "tracking=jsonl",
]  # fmt: skip
WRAPPER = """
import json, os, sys, time
began = time.time()
from runner.launching import worker
code = worker.main([sys.argv[1]])
json.dump([began, time.time()], open(os.path.join(sys.argv[1], "work.json"), "w"))
sys.exit(code)
"""
FRONT = """
import json, sys
from runner.launching import pool
pool.worker_command = lambda path: [sys.executable, "-c", {wrapper!r}, str(path)]
from runner.cli.main import main
code = main(sys.argv[1:])
import time
print("torch imported:", "torch" in sys.modules, "cpu:", time.process_time(), file=sys.stderr)
sys.exit(code)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--at-a-time", type=int, default=2)
    parser.add_argument("--points", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.points:
        return points(arguments.points)
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
        return bench(Path(folder), arguments.jobs, arguments.at_a_time)


def bench(folder: Path, jobs: int, at_a_time: int) -> int:
    """Run the sweep twice, print the figures; 0 when the bars are met."""
    command = ["train", "-m", f"seed=range({jobs})", f"launch.jobs={at_a_time}", f"output_dir={folder}", *TINY]
    first, output = timed(command)
    (place,) = (folder / "sweeps").iterdir()
    runs = sorted((place / "jobs").iterdir())
    statuses = [json.loads((run / "run.json").read_text())["status"] for run in runs]
    spans = [json.loads((run / "work.json").read_text()) for run in runs]
    work = sum(end - begin for begin, end in spans)
    idle = jobs_overlap(spans, at_a_time)
    overhead = (first - work / at_a_time) / jobs
    second, again = timed(command)
    lazy = "torch imported: False" in output and "torch imported: False" in again
    cpu, cpu_again = (float(text.rpartition("cpu: ")[2]) for text in (output, again))
    created = [datetime.fromisoformat(json.loads((run / "run.json").read_text())["created"]) for run in runs]
    print(f"{jobs} jobs, {at_a_time} at a time: {statuses.count('COMPLETED')} completed in {first:.1f} s")
    print(f"  the jobs' own work   {work:.1f} s in {jobs} processes ({work / jobs:.1f} s each)")
    print(f"  overhead             {overhead:.2f} s a job (bar 2.0); slots empty for {idle:.2f} s a job")
    print(f"  the second time      {second:.2f} s (bar 3.0)")
    print(f"  CPU of the front end {cpu / jobs:.2f} s a job, {cpu_again:.2f} s the second time")
    print(f"  torch in front end   {'no' if lazy else 'YES'}")
    print(f"  first to last start  {(max(created) - min(created)).total_seconds():.0f} s")
    good = statuses.count("COMPLETED") == jobs and overhead <= 2 and second <= 3 and lazy
    print("bars met" if good else "BARS MISSED")
    return 0 if good else 1


def jobs_overlap(spans: list[list[float]], at_a_time: int) -> float:
    """Seconds a job for which a slot was empty between the first start and the last end."""
    begin, end = min(s[0] for s in spans), max(s[1] for s in spans)
    return ((end - begin) * at_a_time - sum(b - a for a, b in spans)) / len(spans)


def timed(command: list[str]) -> tuple[float, str]:
    """Wall time and stderr of a `runner` command whose workers note when they work."""
    program = FRONT.format(wrapper=WRAPPER)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise SystemExit(done.returncode)
    return took, done.stderr


def points(count: int) -> int:
    """Compose and check a grid of so many jobs, eight weightings among them."""
    from runner.config.compose import compose
    from runner.config.grid import check, expand

    weightings = "equal,uncertainty,dwa,pcgrad,cagrad,mgda,nash_mtl,imtl"
    overrides = ["+experiment=demo", f"weighting={weightings}", f"seed=range({max(1, count // 8)})"]
    began, cpu_before = time.perf_counter(), time.process_time()
    grid = expand(compose("train", overrides, multirun=True))
    check(grid, None)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu_before
    print(
        f"{len(grid.points)} jobs composed and checked in {took:.1f} s; {cpu / len(grid.points) * 1e3:.0f} ms CPU each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
