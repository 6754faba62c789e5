"""The pool: what runs when, who gets which GPU, how jobs end. The workers are stand-ins without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runner.errors import UserError
from runner.launching import devices, pool
from runner.launching.devices import Gpus
from runner.launching.pool import Pool, claim
from runner.launching.ranks import settle
from runner.launching.rundir import RunDirectory

FAKE = Path(__file__).with_name("fake_worker.py")


def config(name: str, **launch: object) -> dict:
    settings = {"num_processes": 1, "device": "cpu", "threads": None, "port": None} | launch
    return {"name": name, "seed": 0, "launch": settings, "optimizer": {"lr": 0.1}}


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(pool, "worker_command", lambda path: [sys.executable, str(FAKE), str(path)])


def status(path: Path) -> str:
    return RunDirectory(path).info()["status"]


def test_so_many_at_a_time_in_order_and_each_in_its_own_directory(tmp_path):
    gate = tmp_path / "gate"
    runs = Pool(2)
    jobs = [runs.submit(config(f"wait:{gate}"), tmp_path / str(n), ["train"], sweep="s") for n in range(3)]
    while len(runs.running) < 2 or not all((j.path / "environment.json").exists() for j in jobs[:2]):
        runs.step(0.02)
    assert [j.state for j in jobs] == ["RUNNING", "RUNNING", "WAITING"]
    assert not (tmp_path / "2").exists()
    gate.touch()
    runs.drain()
    assert [j.state for j in jobs] == ["COMPLETED"] * 3
    assert [j.code for j in jobs] == [0, 0, 0]
    info = json.loads((tmp_path / "0/run.json").read_text())
    assert info["sweep"] == "s" and info["status"] == "COMPLETED" and len(info["attempts"]) == 1
    assert (tmp_path / "0/console.log").read_text() == "working\n"


def test_a_failure_is_told_in_a_line_and_the_next_job_runs(tmp_path):
    runs = Pool(1)
    jobs = [runs.submit(config(name), tmp_path / name, ["train"]) for name in ("fail", "ok")]
    runs.drain()
    assert [(j.state, j.code, j.message) for j in jobs] == [
        ("FAILED", 1, "the loss is not finite"),
        ("COMPLETED", 0, ""),
    ]


def test_a_completed_job_is_not_run_again_and_another_one_goes_on(tmp_path):
    first = Pool(1)
    first.submit(config("ok"), tmp_path / "ok", ["train"])
    slow = first.submit(config("slow"), tmp_path / "slow", ["train"])
    while not (tmp_path / "slow/environment.json").exists():
        first.step(0.02)
    slow.stop()
    first.drain()
    assert (slow.state, slow.code, status(slow.path)) == ("STOPPED", 75, "STOPPED")
    second = Pool(2)
    again = second.submit(config("ok"), tmp_path / "ok", ["train"])
    slow = second.submit(config("slow"), tmp_path / "slow", ["train"])
    while not (len(second.running) and len(RunDirectory(slow.path).info()["attempts"]) == 2):
        second.step(0.02)
    assert again.skipped and again.state == "COMPLETED"
    assert len(RunDirectory(again.path).info()["attempts"]) == 1
    slow.kill()
    second.drain()


def test_another_configuration_in_the_directory_is_refused(tmp_path):
    runs = Pool(1)
    runs.submit(config("ok"), tmp_path / "a", ["train"])
    runs.drain()
    other = runs.submit(config("ok") | {"optimizer": {"lr": 0.2}}, tmp_path / "a", ["train"])
    runs.drain()
    assert other.state == "FAILED" and "optimizer.lr: 0.1 → 0.2" in other.message


def test_kill_ends_a_deaf_worker_and_is_recorded(tmp_path):
    runs = Pool(1)
    job = runs.submit(config("deaf"), tmp_path / "deaf", ["train"])
    waiting = runs.submit(config("ok"), tmp_path / "later", ["train"])
    while not (job.path / "environment.json").exists():
        runs.step(0.02)
    runs.kill()
    runs.drain()
    assert (job.state, status(job.path)) == ("STOPPED", "STOPPED")
    assert "SIGKILL" in job.message
    assert waiting.state == "STOPPED" and not waiting.path.exists()


def test_a_worker_that_dies_has_failed(tmp_path):
    runs = Pool(1)
    job = runs.submit(config("deaf"), tmp_path / "deaf", ["train"])
    while not (job.path / "environment.json").exists():
        runs.step(0.02)
    os.kill(job._ranks.processes[0].pid, signal.SIGKILL)
    runs.drain()
    assert (job.state, job.code, status(job.path)) == ("FAILED", 1, "FAILED")


def test_what_ends_a_job_before_its_first_attempt_is_remembered(tmp_path):
    """A checkpoint that is not there, say; the log ends with a hint, not with what is wrong."""
    job = Pool(1).submit(config("ok"), tmp_path / "job", ["train"])
    run = claim(job)
    (run.path / "console.log").write_text("error: no such checkpoint\n  check the spelling\n")
    run.end_attempt("FAILED", message="no such checkpoint")
    assert pool.last_message(run) == "no such checkpoint"
    run.begin_attempt(0)
    assert not run.info()["message"]


def test_the_end_of_a_worker_that_waited_says_nothing_of_the_one_at_work(tmp_path):
    job = Pool(1).submit(config("ok"), tmp_path / "job", ["train"])
    run = claim(job)
    run.begin_attempt(0)  # by this process, which lives
    code, words = settle(run, -signal.SIGKILL, False)
    assert code == 1 and words == f"another process is working in {run.path}"
    assert status(run.path) == "RUNNING" and "ended" not in run.info()["attempts"][0]


def test_two_front_ends_never_run_one_job_at_a_time(tmp_path):
    gate = tmp_path / "gate"
    here, there = Pool(1), Pool(1)
    mine = here.submit(config(f"wait:{gate}"), tmp_path / "job", ["train"])
    while not (mine.path / "environment.json").exists():
        here.step(0.02)
    theirs = there.submit(config(f"wait:{gate}"), tmp_path / "job", ["train"])
    there.step(0.05)
    assert theirs.elsewhere and theirs.state == "WAITING"
    gate.touch()
    here.drain()
    there.drain()
    assert theirs.skipped and theirs.state == "COMPLETED"
    assert len(RunDirectory(mine.path).info()["attempts"]) == 1


def test_workers_stop_when_the_front_end_is_killed(tmp_path):
    program = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
    from pathlib import Path
    from runner.launching import pool
    pool.worker_command = lambda path: [sys.executable, {str(FAKE)!r}, str(path)]
    runs = pool.Pool(2)
    for n in range(2):
        runs.submit({config("slow")!r}, Path({str(tmp_path)!r}) / str(n), ["train"])
    runs.drain()
    """
    front = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    wait(lambda: all((tmp_path / str(n) / "environment.json").exists() for n in range(2)))
    front.kill()
    front.wait()
    wait(lambda: [status(tmp_path / str(n)) for n in range(2)] == ["STOPPED"] * 2)


def wait(condition, timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cores_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(devices, "cores", lambda: 8)
    assert devices.thread_share(config("a"), 1) == {}
    assert devices.thread_share(config("a"), 3)["OMP_NUM_THREADS"] == "2"
    assert devices.thread_share(config("a", num_processes=2), 3)["OMP_NUM_THREADS"] == "1"
    assert devices.thread_share(config("a", threads=5), 3) == {}
    runs = Pool(4)
    job = runs.submit(config("ok"), tmp_path / "a", ["train"])
    runs.drain()
    assert json.loads((job.path / "environment.json").read_text())["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert devices.thread_share(config("a"), 3) == {}


def test_gpus_are_leased_one_job_each():
    gpus = Gpus(1, ["0", "1"])
    any_device = config("a", device="auto")
    first, second = gpus.lease(any_device), gpus.lease(any_device)
    assert sorted(first + second) == ["0", "1"]
    assert gpus.lease(any_device) is None
    assert gpus.lease(config("a")) == []  # on the CPU
    gpus.give_back(first)
    assert gpus.lease(any_device) == first
    with pytest.raises(UserError, match="3, but 2 GPUs"):
        Gpus(3, ["0", "1"])


def test_gpus_are_spread_and_shared_without_a_number():
    gpus = Gpus(None, ["0", "1"])
    single, double = config("a", device="auto"), config("a", device="auto", num_processes=2)
    assert [gpus.lease(single) for _ in range(3)] == [["0"], ["1"], ["0"]]
    assert gpus.lease(double) == ["1", "0"]
    assert Gpus(None, []).lease(single) == []


def test_a_job_that_waits_for_its_gpu_lets_the_others_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    runs = Pool(2, gpus_per_job=1)
    names = [("slow", "auto"), ("slow", "auto"), ("ok", "cpu")]
    jobs = [runs.submit(config(n, device=d), tmp_path / str(i), ["train"]) for i, (n, d) in enumerate(names)]
    while not jobs[2].ended or not (jobs[0].path / "environment.json").exists():
        runs.step(0.02)
    assert [j.state for j in jobs] == ["RUNNING", "WAITING", "COMPLETED"]
    assert json.loads((jobs[0].path / "environment.json").read_text())["CUDA_VISIBLE_DEVICES"] == "3"
    assert json.loads((jobs[2].path / "environment.json").read_text())["CUDA_VISIBLE_DEVICES"] == ""
    runs.stop()
    while not jobs[0].ended:
        runs.step(0.02)
    assert jobs[1].state == "STOPPED"


def test_a_job_that_is_not_ready_waits(tmp_path):
    done: list[str] = []
    runs = Pool(2, ready=lambda job: job.path.name == "first" or "first" in done)
    second = runs.submit(config("ok"), tmp_path / "second", ["train"])
    runs.submit(config("ok"), tmp_path / "first", ["train"])
    while not runs.idle:
        done += [job.path.name for job in runs.step(0.02)]
    assert done == ["first", "second"] and second.state == "COMPLETED"
