"""The life of a run, through the command line: claim, train, answer, refuse, fall back, stop, resume."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import TINY, environment, newest_run, rows, runner, train, weights

STEPS = ["trainer.max_steps=12"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("outputs"), *TINY, *STEPS, "name=tiny")


def start(run: Path) -> subprocess.Popen:
    """`runner resume RUN` in the background, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "runner", "resume", str(run)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        path = run / "metrics.jsonl"
        if path.exists() and any(f'"step": {step},' in line or f'"step":{step},' in line for line in path.open()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came")


def test_the_directory_holds_what_the_design_names(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"run.json", "config.yaml", "train.log", "metrics.jsonl", "checkpoints", "result.json"} <= names
    assert finished.parent.name == "tiny" and finished.parent.parent.name == "train"
    info = json.loads((finished / "run.json").read_text())
    assert info["status"] == "COMPLETED" and len(info["attempts"]) == 1
    assert info["signature"] in finished.name
    assert info["packages"]["torch"] == importlib.metadata.version("torch")
    assert info["argv"][0] == "train"
    best = (finished / "checkpoints" / "best").resolve()
    assert (best / "DONE").exists()


def test_result_json_has_what_the_issue_names(finished):
    result = json.loads((finished / "result.json").read_text())
    assert {"status", "split", "tasks", "wall_s", "peak_memory_mb", "steps", "examples_per_s", "parameters"} <= set(
        result
    )
    assert result["split"] == "test" and result["steps"] == 12
    assert set(result["tasks"]) == {"segmentation", "depth", "normals", "edge"}
    assert 0 <= result["tasks"]["segmentation"]["pixel_acc"] <= 1
    assert result["wall_s"] >= result["train_s"] > 0


def test_metrics_have_one_row_per_step_and_metric(finished):
    seen = [(r["step"], r["split"], r["task"], r["metric"]) for r in rows(finished)]
    assert len(seen) == len(set(seen))
    assert {r["step"] for r in rows(finished) if r["split"] == "train"} == {2, 4, 6, 8, 10, 12}
    assert {r["step"] for r in rows(finished) if r["split"] == "validation"} == {8, 12}


def test_a_completed_run_answers_at_once(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    done = runner("resume", str(finished))
    assert done.returncode == 0 and "COMPLETED" in done.stdout and "segmentation" in done.stdout
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_pinned_directory_refuses_another_configuration_and_shows_the_difference(finished):
    done = runner("train", *TINY, *STEPS, "name=tiny", f"run_dir={finished}", "optimizer.lr=0.5")
    assert done.returncode == 2, done.stderr
    assert "optimizer.lr" in done.stderr and "0.5" in done.stderr and "Traceback" not in done.stderr
    same = runner("train", *TINY, *STEPS, "name=tiny", f"run_dir={finished}")
    assert same.returncode == 0 and "COMPLETED" in same.stdout


def test_an_edited_config_is_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["optimizer"]["lr"] = 0.5
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    done = runner("resume", str(copy))
    assert done.returncode == 2 and "was changed" in done.stderr


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)),
    ],
)
def test_a_stop_signal_saves_and_resuming_ends_in_the_same_bits(finished, tmp_path, number):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "runner", "train", *TINY, *STEPS, "name=tiny", f"run_dir={run}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(run, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 75, output
    assert "runner resume" in output
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "STOPPED" and signal.Signals(number).name in info["attempts"][-1]["message"]
    done = runner("resume", str(run))
    assert done.returncode == 0, done.stderr
    same_bits(finished, run)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_in_the_same_bits(tmp_path):
    options = [*TINY, "trainer.max_steps=40", "name=two", "launch.num_processes=2"]
    whole = train(tmp_path / "whole", *options)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "runner", "train", *options, f"run_dir={run}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(run, 4)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    done = runner("resume", str(run))
    assert done.returncode == 0, done.stderr
    same_bits(whole, run)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(tmp_path):
    options = [*TINY, "trainer.max_steps=60", "name=two", "launch.num_processes=2"]
    whole = train(tmp_path / "whole", *options)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "runner", "train", *options, f"run_dir={run}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(run, 6)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    done = runner("resume", str(run))
    assert done.returncode == 0, done.stderr
    same_bits(whole, run)


def same_bits(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    first, second = ([{k: v for k, v in r.items() if k != "attempt"} for r in rows(p)] for p in (a, b))
    timed = ("examples_per_s", "solver_share")
    assert [r for r in first if r["metric"] not in timed] == [r for r in second if r["metric"] not in timed]
    results = [json.loads((p / "result.json").read_text()) for p in (a, b)]
    assert results[0]["tasks"] == results[1]["tasks"]


@pytest.mark.slow
def test_kill_minus_nine_of_the_front_end_stops_the_worker_and_the_run_goes_on(finished, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "runner", "train", *TINY, *STEPS, "name=tiny", f"run_dir={run}"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(run, 2)
    process.kill()
    process.wait()
    done = runner("resume", str(run))
    assert done.returncode == 0, done.stderr
    same_bits(finished, run)


def test_a_damaged_newest_checkpoint_falls_back(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    info = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(info | {"status": "FAILED"}))
    (copy / "result.json").unlink()
    newest = (copy / "checkpoints" / "latest").resolve()
    with open(newest / "model.safetensors", "r+b") as file:
        file.truncate(100)
    done = runner("resume", str(copy))
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stdout + done.stderr
    same_bits(finished, copy)


@pytest.mark.slow
def test_two_workers_never_share_a_directory(finished, tmp_path):
    """The lock: a second worker waits for the first, then finds the work done."""
    run = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-m", "runner", "train", *TINY, *STEPS, "name=tiny", f"run_dir={run}"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_step(run, 2)
    second = runner("resume", str(run))
    assert first.wait(timeout=60) == 0 and second.returncode == 0
    assert len(json.loads((run / "run.json").read_text())["attempts"]) == 1
    same_bits(finished, run)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    done = runner("train", *TINY, "trainer.max_steps=30", "optimizer.lr=1e30", f"output_dir={tmp_path}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not finite" in done.stderr and "Traceback" not in done.stderr
    run = newest_run(tmp_path)
    assert json.loads((run / "run.json").read_text())["status"] == "FAILED"
    if "gradient" not in done.stderr:
        report = json.loads((run / "nonfinite.json").read_text())
        assert report["tasks"] and len(report["examples"]["rooms"]) == 8


def test_eval_of_a_run_repeats_its_result(finished, tmp_path):
    done = runner("eval", f"run={finished}", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((newest_run(tmp_path) / "result.json").read_text())
    expected = json.loads((finished / "result.json").read_text())
    assert result["tasks"] == expected["tasks"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_says_so_and_keeps_the_checkpoint_before(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = runner("train", *TINY, *STEPS, "trainer.keep=50", "trainer.checkpoint_every=1", f"output_dir={small}")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "disk is full" in done.stderr and "Traceback" not in done.stderr
        assert "runner resume" in done.stderr
        run = newest_run(small)
        subprocess.run(["mount", "-o", "remount,size=300m", str(small)], check=True)
        resumed = runner("resume", str(run))
        assert resumed.returncode == 0, resumed.stderr
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
