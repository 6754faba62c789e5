"""Against a real Slurm, such as the one of `scripts/slurm_local.sh start`; run with `pytest -m slurm`.

With `SLURM_LOCAL_NODES=2` it has two nodes, and what needs them is tested too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
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
    return [line for line in done.stdout.splitlines() if not ids or line.split()[0] in ids]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """What a test that fails leaves in the queue must not fail the next one."""
    before = queue()
    yield
    left = {line.split()[0] for line in queue() if line not in before}
    if left:
        subprocess.run(["scancel", *left], check=False)
        until(lambda: not queue(*left))


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
    script += [
        "--",
        "trainer.max_steps=60",
        "trainer.checkpoint_every=5",
        "trainer.eval_every=20",
        "tracking.plots=false",
    ]
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
    """The run needs more than the limit and gets it in several attempts; the signal comes after half a minute, and
    leaves enough to a busy machine: one that does not save in time is killed, and Slurm does not requeue it.
    """
    steps = ["trainer.max_steps=4000", "seed=0", "trainer.eval_every=null", "trainer.checkpoint_every=1000"]
    sweep, job = submit(tmp_path, *steps, "launch.slurm.time=2", "launch.slurm.grace=90")
    run = next(iter(sweep.glob("configs/000-*"))).stem
    path = sweep / "jobs" / run
    until(lambda: (path / "run.json").exists() and len(info(path)["attempts"]) > 1, timeout=300)
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


def test_a_search_goes_on_after_its_front_end_was_killed_and_in_a_job_of_its_own(tmp_path):
    """Two trials: killed in the first, gone on with by a driver in Slurm; the same numbers as on this machine."""
    lines = [*TINY, "trainer.max_steps=24", "tasks=[depth]", "optimizer.lr=1e-3,1e-4", "name=found"]
    lines += ["tune.sampler=grid", "tune.objective=depth", "launch.device=cpu"]
    queued = [*lines, *SLURM, "launch.slurm.max_parallel=1", f"tune.dir={tmp_path / 'queued'}"]
    here, there = tmp_path / "here", tmp_path / "queued"
    command = [sys.executable, "-m", "runner", "tune", *queued]
    front = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: list(there.glob("jobs/*/metrics.jsonl")) or front.poll() is not None)
    assert front.poll() is None, front.communicate()[0]
    (element,) = [line for line in queue() if line.endswith("RUNNING")]
    subprocess.run(["scancel", "--signal=USR2", "_".join(element.split()[:2])], check=True)  # as before a time limit
    front.kill()
    front.communicate()
    (there / "slurm.json").unlink()  # as if it had been killed before it could note what it submitted
    done = runner("tune", *queued, "tune.driver=slurm")
    assert done.returncode == 0 and "submitted its driver" in done.stdout, done.stdout + done.stderr
    shown = runner("status", str(there)).stdout
    assert "search queued" in shown and "driver" in shown
    assert runner("tune", *lines, f"tune.dir={here}").returncode == 0  # meanwhile
    until(lambda: not queue())
    one, two = (json.loads((place / "tune.json").read_text())["trials"] for place in (here, there))
    log = next(there.glob("slurm/driver-*.log")).read_text()
    assert [t["values"] for t in one] == [t["values"] for t in two], log
    assert [t["state"] for t in two] == ["COMPLETE"] * 2 and "the best, trial" in log
    arrays = [entry["numbers"] for entry in json.loads((there / "slurm.json").read_text())]
    assert [n for numbers in arrays for n in numbers] == [
        1
    ]  # the first trial was found in the queue, not submitted again
    for number, trial in enumerate(two):
        assert len(info(there / trial["directory"])["attempts"]) == 2 - number
        same_bits(here / one[number]["directory"], there / trial["directory"])


def test_a_lagging_trial_is_pruned_in_the_queue(tmp_path):
    """One that learns nothing is stopped by a signal through Slurm, is not requeued, and its run says why."""
    lines = [*TINY, *SLURM, "trainer.max_steps=400", "trainer.eval_every=10", "tasks=[depth]", "name=found"]
    lines += ["optimizer.lr=1e-3,1e-12", "tune.sampler=grid", "tune.objective=depth", "tune.pruner=median"]
    lines += ["tune.startup=2", "launch.slurm.max_parallel=1", f"tune.dir={tmp_path / 's'}"]
    done = runner("tune", *lines)
    assert done.returncode == 0, done.stdout + done.stderr
    good, bad = json.loads((tmp_path / "s" / "tune.json").read_text())["trials"]
    assert (good["state"], bad["state"]) == ("COMPLETE", "PRUNED"), done.stdout
    found = info(tmp_path / "s" / bad["directory"])
    assert found["pruned"]["by"] == "median" and found["status"] == "STOPPED" and len(found["attempts"]) == 1
    assert max(row["step"] for row in rows(tmp_path / "s" / bad["directory"])) < 400
    until(lambda: not queue())


def test_cancel_stops_a_search_with_its_driver(tmp_path):
    lines = [*TINY, *SLURM, "tasks=[depth]", "trainer.max_steps=4000", "optimizer.lr=1e-3,1e-4,1e-5", "name=found"]
    lines += ["tune.sampler=grid", "tune.objective=depth", "tune.driver=slurm", f"tune.dir={tmp_path / 's'}"]
    assert runner("tune", *lines).returncode == 0
    until(lambda: any(line.split()[1] == "0" for line in queue()))
    done = runner("cancel", str(tmp_path / "s"))
    assert done.returncode == 0 and "cancelled the driver of the search" in done.stdout
    until(lambda: not queue())
    trials = json.loads((tmp_path / "s" / "tune.json").read_text())["trials"]
    assert {t["state"] for t in trials} == {"RUNNING"}
    assert "runner resume" in runner("status", str(tmp_path / "s")).stdout


def test_two_nodes_train_one_run_and_go_on_together(tmp_path):
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, check=True)
    if len(done.stdout.split()) < 2:
        pytest.skip("there is one node: SLURM_LOCAL_NODES=2 scripts/slurm_local.sh restart")
    steps = ["trainer.max_steps=60", "launch.num_processes=2", "tasks=[segmentation,depth]"]
    sweep, job = submit(tmp_path / "queued", *steps, "launch.slurm.nodes=2")
    (run,) = (sweep / "jobs" / path.stem for path in sweep.glob("configs/000-*"))
    until(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 20)
    subprocess.run(["scancel", "--signal=USR2", f"{job}_0"], check=True)
    calm = train(tmp_path / "calm", *TINY, *steps)
    until(lambda: not queue(job))
    assert info(run)["status"] == "COMPLETED", next(sweep.glob("slurm/*.log")).read_text()
    assert [a["status"] for a in info(run)["attempts"]] == ["STOPPED", "COMPLETED"] and (run / "rank1.log").exists()
    same_bits(calm, run)
