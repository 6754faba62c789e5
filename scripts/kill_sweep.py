"""Kill the front end of a sweep with SIGKILL at random moments, run the same command again, and look at every job.

    python scripts/kill_sweep.py --kills 6 --out kills -- seed=0,1,2 launch.jobs=2 +experiment=demo trainer.max_steps=60

Everything behind `--` is what `runner train -m` takes. At the end every job must be COMPLETED, its weights and metrics
must be those of an undisturbed sweep, no two of its attempts may overlap, nothing may be recorded twice. Exits 0 if so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds a front end may live")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="+", help="what `runner train -m` takes, after --")
    arguments = parser.parse_args()
    calm, killed = arguments.out.resolve() / "undisturbed", arguments.out.resolve() / "killed"
    if start(arguments.overrides, calm).wait() != 0:
        print("the undisturbed sweep failed", file=sys.stderr)
        return 1
    chance = random.Random(arguments.seed)
    for number in range(arguments.kills):
        process = start(arguments.overrides, killed)
        time.sleep(chance.uniform(0.2, arguments.longest))
        if process.poll() is not None:
            print("the sweep ended before all kills: give it more to do, or a smaller --longest")
            break
        process.kill()
        process.wait()
        print(f"kill {number + 1}: {states(killed)}", flush=True)
    if start(arguments.overrides, killed).wait() != 0:
        print("the killed sweep did not complete", file=sys.stderr)
        return 1
    good = [compare(a, b) for a, b in zip(jobs(calm), jobs(killed), strict=True)]
    print(f"{sum(good)} of {len(good)} jobs completed and identical, none run twice")
    return 0 if all(good) else 1


def start(overrides: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Start the sweep, quietly."""
    command = [sys.executable, "-m", "runner", "train", "-m", *overrides, f"output_dir={output}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def jobs(output: Path) -> list[Path]:
    """The run directories of the sweep's jobs."""
    return sorted(output.glob("sweeps/*/jobs/*"))


def states(output: Path) -> str:
    """How far the jobs are, without those that wait."""
    found = [json.loads((run / "run.json").read_text()) for run in jobs(output) if (run / "run.json").exists()]
    return ", ".join(f"{info['status']} ({len(info['attempts'])} attempts)" for info in found) or "nothing started"


def compare(calm: Path, run: Path) -> bool:
    """One job against its undisturbed twin; prints a line."""
    info = json.loads((run / "run.json").read_text())
    first, second = (load_file(p / "checkpoints/latest/model.safetensors") for p in (calm, run))
    rows = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (calm, run)]
    values = [[{**r, "attempt": 0} for r in some if r["metric"] != "examples_per_s"] for some in rows]
    keys = [(r["step"], r["split"], r["task"], r["metric"]) for r in rows[1]]
    attempts = info["attempts"]
    ends = [attempt.get("ended", "") for attempt in attempts]
    starts = [attempt["started"] for attempt in attempts]
    checks = {
        "completed": info["status"] == "COMPLETED",
        "weights": all(torch.equal(first[name], second[name]) for name in first),
        "metrics": values[0] == values[1],
        "nothing twice": len(keys) == len(set(keys)),
        "attempts apart": all(not end or end <= later for end, later in zip(ends, starts[1:], strict=False)),
        "completed once": sum(attempt["status"] == "COMPLETED" for attempt in attempts) == 1,
    }
    bad = [name for name, good in checks.items() if not good]
    steps = [attempt["from_step"] for attempt in attempts]
    print(f"  {run.name}: attempts from steps {steps}: {'ok' if not bad else f'WRONG: {bad}'}")
    return not bad


if __name__ == "__main__":
    sys.exit(main())
