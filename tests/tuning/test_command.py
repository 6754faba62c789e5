"""Whole searches through the command line, with stand-ins for the workers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from runner.cli.main import main
from runner.launching import pool
from tests.support import TINY, environment

HERE = Path(__file__).parent
BASE = [*TINY, "trainer.max_steps=12", "trainer.eval_every=4", "tasks=[segmentation,depth]", "name=tiny"]
LR = "optimizer.lr=tag(log,interval(1e-5,1e-1))"


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake = str(HERE / "fake_worker.py")
    monkeypatch.setattr(pool, "worker_command", lambda path: [sys.executable, fake, str(path)])


def tune(*arguments: str) -> int:
    return main(["tune", *BASE, *arguments])


def folder() -> Path:
    (found,) = Path("outputs/tune").iterdir()
    return found


def summary() -> dict:
    return json.loads((folder() / "tune.json").read_text())


def started() -> list[str]:
    path = folder() / "jobs" / "started"
    return path.read_text().splitlines() if path.exists() else []


def test_a_search_finds_the_best_and_leaves_ordinary_runs(capfd):
    assert tune(LR, "tune.objective=depth", "tune.trials=12", "tune.startup=4") == 0
    out = capfd.readouterr().out
    found = summary()
    values = {t["number"]: t["values"][0] for t in found["trials"]}
    assert len(values) == 12 and found["objective"] == ["depth/rmse"] and found["better"] == ["lower"]
    assert found["best"] == [min(values, key=values.get)]
    best = found["trials"][found["best"][0]]
    config = yaml.safe_load((folder() / best["directory"] / "config.yaml").read_text())
    assert f"optimizer.lr={config['optimizer']['lr']!r}" == best["overrides"][0]
    assert f"the best, trial {best['number']}: {best['overrides'][0]}" in out
    assert f"runner eval outputs/tune/{folder().name}/{best['directory']} split=test" in out
    train = next(line for line in out.splitlines() if line.startswith("  train "))
    assert best["overrides"][0] in train and "final_split" not in train and "tune." not in train
    # a sweep like any other
    sweep = json.loads((folder() / "sweep.json").read_text())
    assert sweep["verb"] == "tune" and sweep["id"] == folder().name and sweep["schema"] == 1
    assert [job["number"] for job in sweep["jobs"]] == list(range(12))
    for job in sweep["jobs"]:
        info = json.loads((folder() / job["directory"] / "run.json").read_text())
        assert info["status"] == "COMPLETED" and info["signature"] == job["signature"]
        assert info["sweep"] == sweep["id"] and info["trial"] == job["number"]
    assert (folder() / "history.png").stat().st_size > 5000 and (folder() / "importance.png").exists()
    assert found["importance"] == {"optimizer.lr": 1.0}


def test_the_same_command_answers_and_a_larger_budget_goes_on(capfd):
    assert tune(LR, "tune.trials=3") == 0
    before = summary()["trials"]
    began = started()
    assert tune(LR, "tune.trials=3", "launch.device=cpu") == 0  # where it runs is no other question
    assert started() == began and summary()["trials"] == before
    assert "3 trials are there" in capfd.readouterr().out
    assert tune(LR, "tune.trials=5", "tune.jobs=2") == 0
    assert summary()["trials"][:3] == before and len(summary()["trials"]) == 5 and len(started()) == 5
    assert tune(LR, "tune.trials=3", "trainer.batch_size=4") == 0  # another question
    assert len(list(Path("outputs/tune").iterdir())) == 2


def test_trials_do_not_depend_on_where_the_search_was_cut(tmp_path):
    assert tune(LR, "weighting=equal,pcgrad", "tune.trials=6", "tune.startup=3", f"tune.dir={tmp_path}/whole") == 0
    for count in (1, 2, 4, 6):
        arguments = [LR, "weighting=equal,pcgrad", "tune.startup=3", f"tune.dir={tmp_path}/parts"]
        assert tune(*arguments, f"tune.trials={max(2, count)}") == 0
    whole, parts = (json.loads((tmp_path / n / "tune.json").read_text())["trials"] for n in ("whole", "parts"))
    assert [(t["overrides"], t["values"]) for t in whole] == [(t["overrides"], t["values"]) for t in parts]


def test_a_grid_is_covered_once(capfd):
    assert (
        tune("optimizer.lr=1e-4,1e-3,1e-2", "weighting=equal,pcgrad", "tune.sampler=grid", "tune.objective=depth") == 0
    )
    points = [tuple(t["overrides"]) for t in summary()["trials"]]
    assert len(points) == len(set(points)) == 6
    assert points[:2] == [("optimizer.lr=0.0001", "weighting=equal"), ("optimizer.lr=0.0001", "weighting=pcgrad")]
    best = summary()["trials"][summary()["best"][0]]
    assert best["overrides"][0] == "optimizer.lr=0.001"


def test_what_was_tried_is_answered_and_a_small_space_ends_the_search(capfd):
    assert tune("optimizer.lr=1e-4,1e-3", "tune.sampler=random", "tune.trials=10") == 0
    trials = summary()["trials"]
    ran = [t for t in trials if t["directory"]]
    again = [t for t in trials if t["same_as"] is not None]
    assert len(ran) == 2 == len(started()) and len(ran) + len(again) == len(trials)
    for trial in again:
        assert trial["values"] == trials[trial["same_as"]]["values"]
        assert trial["overrides"] == trials[trial["same_as"]]["overrides"]
    assert len(json.loads((folder() / "sweep.json").read_text())["jobs"]) == 2


def test_a_front_is_the_front():
    assert tune(LR, "tune.objective=pareto", "tune.trials=12", "tune.sampler=random") == 0
    found = summary()
    assert found["objective"] == ["segmentation/miou", "depth/rmse"] and found["better"] == ["higher", "lower"]
    points = {t["number"]: t["values"] for t in found["trials"]}
    front = {
        n
        for n, (miou, rmse) in points.items()
        if not any((m >= miou and r <= rmse) and (m, r) != (miou, rmse) for m, r in points.values())
    }
    assert set(found["best"]) == front and 1 < len(front) < 12
    assert (folder() / "front.png").stat().st_size > 5000


def test_a_lagging_trial_is_pruned_and_says_so(capfd):
    arguments = ["tune.objective=depth", "tune.pruner=median", "tune.startup=2", "trainer.clip_norm=4"]
    space = "optimizer.lr=1e-3,2e-3,5e-4,0.5,0.6"
    assert tune(space, *arguments, "tune.sampler=grid") == 0
    trials = summary()["trials"]
    assert [t["state"] for t in trials] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    cut = trials[3]
    info = json.loads((folder() / cut["directory"] / "run.json").read_text())
    assert info["status"] == "STOPPED" and info["pruned"]["by"] == "median" and info["pruned"]["step"] in (4, 8)
    assert "pruned by `runner tune`" in info["attempts"][-1]["message"] == cut["message"]
    assert cut["evaluations"] and not (folder() / cut["directory"] / "result.json").exists()
    began = started()
    assert tune(space, *arguments, "tune.sampler=grid") == 0  # a pruned trial is not gone on with
    assert started() == began
    assert "3 completed, 2 pruned" in capfd.readouterr().out


def test_failing_trials_are_told_and_do_not_end_the_search(capfd):
    assert tune("trainer.clip_norm=5,1,3,6", "tune.sampler=grid", "tune.objective=depth") == 0
    assert [t["state"] for t in summary()["trials"]] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    out = capfd.readouterr().out
    assert "trial 1 failed: the loss is not finite" in out and "depth/rmse is undefined" in out


def test_when_everything_fails_the_search_ends(capfd):
    assert tune(LR, "trainer.clip_norm=1", "tune.trials=20") == 1
    assert "the first 3 trials all failed, the last one: the loss is not finite" in capfd.readouterr().err
    assert len(summary()["trials"]) == 3


def test_hours_are_counted_over_calls():
    assert tune(LR, "tune.trials=50", "tune.hours=1e-9") == 1
    assert summary()["trials"] == []


# ---- stops and kills -------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "driver.py"), *BASE, *arguments]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def jobs() -> Path | None:
    found = list(Path("outputs/tune").glob("*/jobs"))
    return found[0] if found else None


def test_ctrl_c_stops_resumably_and_the_command_goes_on(capfd):
    arguments = [LR, "trainer.clip_norm=2", "tune.trials=3", "tune.jobs=2"]
    process = start(*arguments)
    wait_for(lambda: jobs() is not None and len(list(jobs().glob("*/checkpoint"))) == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "the same command goes on with it" in output and "no torch" in output
    assert [t["state"] for t in summary()["trials"]] == ["RUNNING", "RUNNING"]
    infos = [json.loads(path.read_text()) for path in jobs().glob("*/run.json")]
    assert all(info["status"] == "STOPPED" and "pruned" not in info for info in infos)
    (jobs() / "go").touch()
    assert tune(*arguments) == 0
    assert [t["state"] for t in summary()["trials"]] == ["COMPLETE"] * 3
    assert sorted(line.split()[1] for line in started()) == ["0", "0", "0", "4", "4"]  # continued, not begun again


def test_a_trial_stopped_from_outside_is_left_for_the_next_call(capfd):
    arguments = [LR, "trainer.clip_norm=2", "tune.trials=2"]
    process = start(*arguments)
    wait_for(lambda: jobs() is not None and list(jobs().glob("*/checkpoint")))
    (path,) = jobs().glob("*/checkpoint")
    pid = json.loads((path.parent / "run.json").read_text())["attempts"][-1]["pid"]
    (jobs() / "go").touch()
    os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    states = sorted(t["state"] for t in summary()["trials"])
    if states == ["COMPLETE", "COMPLETE"]:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 75 and "stopped from outside" in output
    assert tune(*arguments) == 0
    assert [t["state"] for t in summary()["trials"]] == ["COMPLETE"] * 2


def test_two_searches_do_not_share_a_folder(capfd):
    arguments = [LR, "trainer.clip_norm=2", "tune.trials=2"]
    process = start(*arguments)
    wait_for(lambda: jobs() is not None and list(jobs().glob("*/checkpoint")))
    assert tune(*arguments) == 2
    assert "another process is tuning in" in capfd.readouterr().err
    (jobs() / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path):
    arguments = [LR, "weighting=equal,pcgrad", "trainer.clip_norm=4", "tune.trials=8", "tune.startup=3"]
    arguments += ["tune.objective=depth"]
    whole = start(*arguments, f"tune.dir={tmp_path}/whole")
    chance = random.Random(0)
    killed = 0
    while True:
        process = start(*arguments, f"tune.dir={tmp_path}/killed")
        try:
            process.communicate(timeout=chance.uniform(1.5, 5.0))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        assert killed < 60
    assert whole.wait(timeout=120) == 0 and process.returncode == 0 and killed >= 2
    one, two = (json.loads((tmp_path / n / "tune.json").read_text()) for n in ("whole", "killed"))
    kept = [t for t in two["trials"] if t["overrides"]]  # a kill inside `ask` leaves an empty trial
    assert [(t["overrides"], t["values"], t["state"]) for t in kept if t["directory"]].__len__() == 8
    assert {tuple(t["overrides"]) for t in kept if t["directory"]} and one["best"]
    if len(kept) == len(two["trials"]):  # then chance has seen the same numbers of trials
        assert [(t["overrides"], t["values"]) for t in kept] == [(t["overrides"], t["values"]) for t in one["trials"]]
    lines = (tmp_path / "killed" / "jobs" / "started").read_text().splitlines()
    began = [line.split()[0] for line in lines if line.endswith(" 0")]
    completed = [p.parent.name for p in (tmp_path / "killed" / "jobs").glob("*/result.json")]
    assert len(completed) == 8 and set(began) <= set(completed)
