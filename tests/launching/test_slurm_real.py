"""Against a real Slurm, such as the one of `scripts/slurm_local.sh start`; run with `pytest -m slurm`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching.test_run_life import same_bits
from tests.support import TINY, environment, rows, runner, train

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
SLURM = ["launch=slurm", "launch.slurm.cpus=1", "launch.slurm.time=30", "launch.slurm.grace=60", "baseline=none"]


@pytest.fixture(scope="session", autouse=True)
def _slurm() -> None:
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode or not done.stdout.strip():
        pytest.skip("no Slurm controller answers: sudo scripts/slurm_local.sh start")


def queue(*ids: str) -> list[str]:
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%F %K %T"], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.split()[0] in ids]


def until(condition, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def submit(place: Path, *overrides: str) -> tuple[Path, str]:
    done = runner("train", *TINY, *SLURM, *overrides, f"output_dir={place}")
    assert done.returncode == 0, done.stderr
    (sweep,) = (place / "sweeps").iterdir()
    return sweep, json.loads((sweep / "slurm.json").read_text())[-1]["job"]


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_every_element_is_struck_and_ends_in_the_same_bits(tmp_path):
    """Requeue, time limit, preemption and a node that dies, one each."""
    script = [sys.executable, str(ROOT / "scripts/slurm_requeue.py"), "--out", str(tmp_path), "--jobs", "4"]
    done = subprocess.run(script, capture_output=True, text=True, env=environment(), timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 complete, identical" in done.stdout


def test_cancel_saves_and_resume_submits_the_rest(tmp_path):
    sweep, job = submit(tmp_path, "-m", "seed=0,1,2", "trainer.max_steps=400", "launch.slurm.max_parallel=1")
    until(lambda: any((run / "metrics.jsonl").exists() for run in sweep.glob("jobs/*")))
    shown = runner("status", str(sweep)).stdout
    assert "running" in shown and "pending" in shown
    assert runner("cancel", str(sweep)).returncode == 0
    until(lambda: not queue(job))
    states = [info(run)["status"] for run in sorted(sweep.glob("jobs/*")) if (run / "run.json").exists()]
    assert states == ["STOPPED"]
    done = runner("resume", str(sweep))
    assert done.returncode == 0 and "3 jobs" in done.stdout
    again = json.loads((sweep / "slurm.json").read_text())[-1]["job"]
    first = next(sweep.glob("jobs/000-*"))
    until(lambda: len(info(first)["attempts"]) == 2)
    assert info(first)["attempts"][1]["from_step"] == info(first)["attempts"][0]["step"] > 0
    runner("cancel", str(sweep))
    until(lambda: not queue(again))


def test_the_time_limit_requeues_and_nothing_is_lost(tmp_path):
    """One minute is the shortest limit; the run needs more, and gets it in several attempts."""
    steps = ["trainer.max_steps=4000", "seed=0", "trainer.eval_every=null", "trainer.checkpoint_every=1000"]
    sweep, job = submit(tmp_path, *steps, "launch.slurm.time=1", "launch.slurm.grace=40")
    run = next(iter(sweep.glob("configs/000-*"))).stem
    path = sweep / "jobs" / run
    until(lambda: (path / "run.json").exists() and len(info(path)["attempts"]) > 1, timeout=200)
    before, after = info(path)["attempts"][:2]
    assert before["status"] == "STOPPED" and "SIGUSR2" in before["message"]
    assert after["from_step"] == before["step"] > 0
    assert "requeued" in next(sweep.glob("slurm/*.log")).read_text()
    runner("cancel", str(sweep))
    until(lambda: not queue(job))


def test_the_plain_script_goes_on_after_a_requeue(tmp_path):
    """scripts/slurm_array.sbatch, with `runner` in the path and the demo made tiny."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "runner").write_text(f'#!/bin/bash\nexec {sys.executable} -m runner "$@"\n')
    (folder / "runner").chmod(0o755)
    clean = {k: v for k, v in environment().items() if not k.startswith("SLURM_")}
    clean |= {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    tiny = [*TINY, "trainer.max_steps=60", "optimizer.lr=1e-3"]
    done = subprocess.run(
        ["sbatch", "--parsable", "--array=0-0", "--cpus-per-task=1", str(ROOT / "scripts/slurm_array.sbatch"), *tiny],
        capture_output=True, text=True, env=clean, cwd=tmp_path, check=True,
    )  # fmt: skip
    job, run = done.stdout.strip(), tmp_path / "out" / "seed-0"
    until(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 20)
    subprocess.run(["scancel", "--signal=USR2", f"{job}_0"], check=True)
    until(lambda: not queue(job))
    assert info(run)["status"] == "COMPLETED" and len(info(run)["attempts"]) == 2
    calm = train(tmp_path / "calm", "+experiment=demo", *tiny, "seed=0")
    same_bits(calm, run)
