"""Whole searches through the command line, with stand-ins for the workers."""

from __future__ import annotations

import contextlib
import io
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
JOBS = "launch.jobs=2"
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


def pairs(found: dict) -> list:
    """What was tried, and what came of it."""
    return [(t["overrides"], t["values"]) for t in found["trials"]]


def started() -> list[str]:
    path = folder() / "jobs" / "started"
    return path.read_text().splitlines() if path.exists() else []


def test_a_search_finds_the_best_and_leaves_ordinary_runs(capfd):
    assert tune(LR, "tune.objective=depth", "tune.trials=5", "tune.startup=4") == 0
    out = capfd.readouterr().out
    found = summary()
    values = {t["number"]: t["values"][0] for t in found["trials"]}
    assert len(values) == 5 and found["objective"] == ["depth/rmse"] and found["better"] == ["lower"]
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
    assert [job["number"] for job in sweep["jobs"]] == list(range(5))
    for job in sweep["jobs"]:
        info = json.loads((folder() / job["directory"] / "run.json").read_text())
        assert info["status"] == "COMPLETED" and info["signature"] == job["signature"]
        assert info["sweep"] == sweep["id"] and info["trial"] == job["number"]
    assert (folder() / "history.png").stat().st_size > 5000 and (folder() / "importance.png").exists()
    assert found["importance"] == {"optimizer.lr": 1.0}


def test_the_same_command_answers_and_a_larger_budget_goes_on(capfd):
    assert tune(LR, "tune.trials=2") == 0
    before = summary()["trials"]
    began = started()
    assert tune(LR, "tune.trials=2", "launch.device=cpu") == 0  # where it runs is no other question
    assert started() == began and summary()["trials"] == before
    assert "2 trials are there" in capfd.readouterr().out
    assert tune(LR, "tune.trials=3", JOBS) == 0
    assert summary()["trials"][:2] == before and len(summary()["trials"]) == 3 and len(started()) == 3
    folders = {place(LR, *more) for more in ([], ["trainer.batch_size=4"], ["tune.seed=1"], ["tune.objective=depth"])}
    assert started() == began + started()[-1:]
    assert main(["status", str(folder())]) == 0 and main(["resume", str(folder())]) == 0
    assert "3 trials are there" in capfd.readouterr().out and len(started()) == 3
    assert json.loads((folder() / "sweep.json").read_text())["argv"] == ["tune", *BASE, LR, "tune.trials=3", JOBS]
    assert len(folders) == 4 and place(LR, "tune.trials=99", "launch.threads=2") in folders


def place(*arguments: str) -> str:
    """The folder that a dry run names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert tune(*arguments, "--dry-run") == 0
    return next(line for line in out.getvalue().splitlines() if line.startswith("folder"))


@pytest.mark.slow
def test_a_front_is_the_front():
    grid = "optimizer.lr=1e-4,1e-3,1e-2"  # rmse 2, 1, 2; miou falls
    assert tune(grid, "tune.objective=pareto", "tune.sampler=grid") == 0
    found = summary()
    assert found["objective"] == ["segmentation/miou", "depth/rmse"] and found["better"] == ["higher", "lower"]
    points = {t["number"]: t["values"] for t in found["trials"]}
    front = {
        n
        for n, (miou, rmse) in points.items()
        if not any((m >= miou and r <= rmse) and (m, r) != (miou, rmse) for m, r in points.values())
    }
    assert set(found["best"]) == front == {0, 1}
    assert (folder() / "front.png").stat().st_size > 5000


def test_hours_are_counted_over_calls():
    assert tune(LR, "tune.trials=50", "tune.hours=1e-9") == 1
    assert summary()["trials"] == []


@pytest.mark.slow
def test_what_trials_need_is_trained_once(capfd):
    """The strengths of a merge are searched over experts that are trained once, here for three trials."""
    assert tune("merge=ties", "merge.density=0.1,0.2,0.4", "tune.sampler=grid", "launch.jobs=2") == 0
    out = capfd.readouterr().out
    experts = list(Path("outputs/train/tiny/expert").glob("*/*/run.json"))
    assert len(experts) == 2 and out.count(": completed") == 2 and "expert of depth: completed" in out
    sweep = json.loads((folder() / "sweep.json").read_text())
    signatures = {json.loads(path.read_text())["signature"] for path in experts}
    assert {need["signature"] for need in sweep["needs"]} == signatures
    for job in sweep["jobs"]:
        info = json.loads((folder() / job["directory"] / "run.json").read_text())
        assert {need["signature"] for need in info["needs"]} == signatures


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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "cancel"])
def test_ctrl_c_stops_resumably_and_the_command_goes_on(how, capfd):
    arguments = [LR, "trainer.clip_norm=2", "tune.trials=3", "launch.jobs=2"]
    process = start(*arguments)
    wait_for(lambda: jobs() is not None and len(list(jobs().glob("*/checkpoint"))) == 2)
    if how == "cancel":
        assert main(["cancel", str(folder())]) == 0 and f"told process {process.pid}" in capfd.readouterr().out
    else:
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path):
    arguments = [LR, "weighting=equal,pcgrad", "trainer.clip_norm=4", "tune.trials=5", "tune.startup=3"]
    arguments += ["tune.objective=depth"]
    whole = start(*arguments, f"tune.dir={tmp_path}/whole")
    chance = random.Random(0)
    begun = tmp_path / "killed" / "jobs" / "started"
    killed = 0
    while True:
        before = begun.stat().st_size if begun.exists() else 0
        process = start(*arguments, f"tune.dir={tmp_path}/killed")
        # at random moments of starting up, of a trial, of its end and of the next one's beginning
        at_once, pause = chance.random() < 0.2, chance.uniform(0.0, 1.5)
        deadline = time.monotonic() + 90
        while process.poll() is None and not (begun.exists() and begun.stat().st_size > before):
            time.sleep(0.01)
            if at_once and time.monotonic() > deadline - 90 + pause:
                break
        time.sleep(pause)
        if process.poll() is not None:
            output = process.communicate()[0]
            break
        process.kill()
        process.communicate()
        killed += 1
        assert killed < 40
    assert process.returncode == 0, output
    assert whole.wait(timeout=120) == 0 and killed >= 2
    one, two = (json.loads((tmp_path / n / "tune.json").read_text()) for n in ("whole", "killed"))
    kept = [t for t in two["trials"] if t["overrides"]]  # a kill inside `ask` leaves an empty trial
    assert [(t["state"], t["message"]) for t in kept if t["directory"]] == [("COMPLETE", "")] * 5
    if len(kept) == len(two["trials"]):  # then every trial had the same number, and the same chance
        assert pairs(two) == pairs(one)
    lines = (tmp_path / "killed" / "jobs" / "started").read_text().splitlines()
    began = [line.split()[0] for line in lines if line.endswith(" 0")]
    completed = [p.parent.name for p in (tmp_path / "killed" / "jobs").glob("*/result.json")]
    assert len(completed) == 5 and set(began) <= set(completed)


@pytest.mark.slow
def test_real_runs_are_searched_pruned_and_gone_on_with(tmp_path):
    """Without stand-ins: a kill -9 of the front end in the middle, and the same numbers as without."""
    base = [*TINY, "trainer.max_steps=6", "trainer.eval_every=2", "mixture.train=16", "tasks=[depth]", "name=tiny"]
    arguments = [*base, "optimizer.lr=1e-3,1e-4", "tune.sampler=grid", "tune.objective=depth", "launch.device=cpu"]
    command = [sys.executable, "-m", "runner", "tune", *arguments]

    def search(place: str, kill: bool) -> dict:
        whole = [*command, f"tune.dir={tmp_path / place}"]
        process = subprocess.Popen(
            whole, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if kill:
            wait_for(lambda: list((tmp_path / place / "jobs").glob("*/metrics.jsonl")), 200)
            process.kill()
            process.communicate()
            return search(place, kill=False)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return json.loads((tmp_path / place / "tune.json").read_text())

    one, two = search("whole", kill=False), search("killed", kill=True)
    assert pairs(one) == pairs(two)
    assert len(list((tmp_path / "killed" / "jobs").iterdir())) == 2
    first = tmp_path / "killed" / two["trials"][0]["directory"]
    assert len(json.loads((first / "run.json").read_text())["attempts"]) == 2
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert not any(row["split"] == "test" for row in rows)
    keys = [(r["step"], r["split"], r["task"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["there is nothing to tune"]),
        (["optimizer.lrr=interval(0.1,1)"], ["unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?"]),
        (["optimizer.lr=interval(-1,1)"], ["'optimizer.lr' must be"]),
        (["weighting=equal,pcgrd"], ["unknown option 'pcgrd'", "did you mean 'pcgrad'?"]),
        ([LR, "tune.trails=3"], ["tune.trails", "did you mean 'tune.trials'?"]),
        ([LR, "tune.sampler=tpee"], ["'tune.sampler' must be one of", "did you mean 'tpe'?"]),
        ([LR, "tune.trials=0"], ["'tune.trials' must be"]),
        ([LR, "tune.sampler=grid"], ["tune.sampler=grid needs finite spaces"]),
        ([LR, "tune.sampler=nsga2"], ["is for several numbers"]),
        ([LR, "tune.objective=dept"], ["there is no task 'dept'", "did you mean 'depth'?"]),
        ([LR, "tune.objective=pareto", "tune.pruner=median"], ["needs one number to compare"]),
        ([LR, "tune.pruner=median", "trainer.eval_every=12"], ["there is none before the end"]),
        ([LR, "-m"], ["takes no -m"]),
        ([LR, "baseline=auto"], ["baseline=auto", "trains no baselines"]),
        ([LR, "tune.driver=slurm"], ["tune.driver=slurm", "launch=slurm"]),
        (["seed=0,1", "launch.jobs=0", "optimizer.lrr=1"], ["seed is not", "'launch.jobs' must be", "'optimizer.lrr'"]),
        (["trainer.batch_size=8,9", "trainer.accumulation=2"], ["trainer.batch_size=9 cannot be divided"]),
        (["weighting=equal,pcgrad", "weighting.every=1,2"], ["'weighting.every'", "runner show weighting/equal"]),
        (["weighting=pcgrad,equal", "weighting.every=1,2"], ["(with weighting=equal weighting.every=1)"]),
    ],
)
def test_mistakes_are_told_before_anything_starts(arguments, words, capfd):
    assert tune(*arguments) == 2
    err = capfd.readouterr().err
    assert all(word in err for word in words), err
    assert "Traceback" not in err and not Path("outputs").exists()


def test_a_pinned_folder_that_holds_another_search_is_left_alone(tmp_path, capfd):
    assert tune("optimizer.lr=1e-3,1e-2", f"tune.dir={tmp_path}/s", "tune.hours=1e-9") == 1  # no run, but a folder
    before = (tmp_path / "s" / "study.jsonl").read_bytes()
    assert tune("optimizer.lr=1e-3,1e-1", f"tune.dir={tmp_path}/s") == 2
    assert "holds another search: optimizer.lr=0.001,0.01" in capfd.readouterr().err
    assert (tmp_path / "s" / "study.jsonl").read_bytes() == before


def test_a_dry_run_leaves_nothing(capfd):
    assert tune(LR, "weighting=equal,pcgrad", "--dry-run") == 0
    out = capfd.readouterr().out
    assert "optimizer.lr = tag(log,interval(1e-5,1e-1))" in out and "endless" in out
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ([LR, "tune.startup=4"], "0-3"),
        ([LR, "tune.startup=4", "tune.trials=2"], "0-1"),
        ([LR, "launch.slurm.max_parallel=2"], "0-1"),
        (["optimizer.lr=1e-3,1e-4", "weighting=equal,pcgrad,dwa", "tune.sampler=grid"], "0-5"),
    ],
)
def test_a_dry_run_with_slurm_writes_the_scripts_of_the_first_trials(more, first, capfd):
    assert tune(*more, "launch=slurm", "tune.driver=slurm", "--dry-run") == 0
    out = capfd.readouterr().out
    place = folder()
    assert sorted(path.name for path in place.iterdir()) == ["driver.sbatch", "slurm", "submit.sbatch"]
    text, driver = ((place / name).read_text() for name in ("submit.sbatch", "driver.sbatch"))
    assert text in out and driver in out and f"#SBATCH --array={first}" in text
    assert f"#SBATCH --job-name={place.name}-driver" in driver and "#SBATCH --array" not in driver
    for script in (text, driver):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
