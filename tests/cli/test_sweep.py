"""`runner train -m`: what runs, what does not run again, how it ends. The workers are stand-ins without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from runner.launching import needs, pool, schedule
from runner.launching.needs import Need
from runner.launching.rundir import RunDirectory
from runner.launching.sweepdir import SweepDirectory

FAKE = Path(__file__).parents[1] / "launching" / "fake_worker.py"


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(pool, "worker_command", lambda path: [sys.executable, str(FAKE), str(path)])
    monkeypatch.setattr(schedule, "TICK_S", 0.02)


def the_sweep() -> SweepDirectory:
    (path,) = Path("outputs/sweeps").iterdir()
    return SweepDirectory.open(path)


def attempts(place: SweepDirectory) -> list[int]:
    return [len(RunDirectory(place.directory(e)).info()["attempts"]) for e in place.entries()]


def states(place: SweepDirectory) -> list[str]:
    return [place.state(e) for e in place.entries()]


def test_every_job_has_a_directory_of_its_own_and_its_own_command(runner):
    command = ["train", "experiment=demo", "seed=1,2", "-m", "weighting=equal,pcgrad", "name=ok", "baseline=none"]
    answer = runner(*command)
    assert answer.code == 0, answer.err
    place = the_sweep()
    info = json.loads((place.path / "sweep.json").read_text())
    assert place.path.name == info["id"] and info["id"].startswith("ok-") and len(info["id"]) == len("ok-") + 8
    assert info["schema"] == 1 and info["verb"] == "train" and info["name"] == "ok"
    assert info["argv"] == [
        "train",
        "experiment=demo",
        "seed=1,2",
        "-m",
        "weighting=equal,pcgrad",
        "name=ok",
        "baseline=none",
    ]
    assert info["axes"] == {"seed": ["1", "2"], "weighting": ["equal", "pcgrad"]}
    assert info["fixed"] == ["+experiment=demo", "name=ok", "baseline=none"]
    for number, entry in enumerate(info["jobs"]):
        seed, weighting = (1, 1, 2, 2)[number], ("equal", "pcgrad")[number % 2]
        overrides = ["+experiment=demo", f"seed={seed}", f"weighting={weighting}", "name=ok", "baseline=none"]
        assert entry["number"] == number and entry["overrides"] == overrides
        assert entry["directory"] == f"jobs/{number:03d}-{entry['signature']}"
        run = RunDirectory.open(place.path / entry["directory"])
        record, config = run.info(), run.config()
        assert record["argv"] == ["train", *overrides] and record["signature"] == entry["signature"]
        assert record["status"] == "COMPLETED" and record["sweep"] == info["id"]
        assert (config["seed"], config["weighting"]["_target_"].split(".")[-1].lower()) == (seed, weighting)
        assert config["run_dir"] == str(run.path)
    assert "4 jobs (2 seed × 2 weighting)" in answer.out
    assert "job 1 started: seed=1 weighting=pcgrad" in answer.out
    assert "all 4 jobs are done" in answer.out
    assert not Path("outputs/train").exists()


def test_hydras_sweep_syntax(runner):
    assert runner("train", "-m", "seed=range(2)", "tasks=[depth],[depth,edge]", "name=ok", "launch.jobs=4").code == 0
    place = the_sweep()
    configs = [place.config(entry) for entry in place.entries()]
    assert [(c["seed"], len(c["mixture"]["tasks"])) for c in configs] == [(s, t) for s in range(2) for t in (1, 2)]


def test_a_sweep_that_stands_in_a_file_and_the_command_line_wins(runner):
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/many.yaml").write_text(
        "# @package _global_\n# Many.\nname: ok\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      seed: [4, 5]\n      sampler: glob(*,exclude=[all,r*,t*])\n      optimizer.lr: 0.1,0.2\n"
    )
    answer = runner("train", "+experiment=many", "optimizer.lr=0.3", "-cd", "own", "baseline=none", "launch.jobs=4")
    assert answer.code == 0, answer.err
    place = the_sweep()
    assert place.info()["axes"] == {"seed": ["4", "5"], "sampler": ["proportional", "uniform"]}
    assert {place.config(entry)["optimizer"]["lr"] for entry in place.entries()} == {0.3}
    # a job's own command is one run, not the sweep again
    argv = RunDirectory(place.directory(place.entries()[0])).info()["argv"]
    assert argv[-3:] == ["--config-dir", "own", "hydra.mode=RUN"]


def test_failures_are_told_in_a_line_each_and_the_others_run(runner):
    answer = runner("train", "-m", "name=ok,fail", "seed=0,1")
    assert answer.code == 1
    assert "Traceback" not in answer.err
    place = the_sweep()
    assert states(place) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    lines = [line.strip() for line in answer.err.splitlines()]
    start = lines.index("2 of 4 jobs failed:")
    assert lines[start + 1 : start + 3] == ["job 2: name=fail seed=0", "the loss is not finite"]
    assert lines[start + 4 : start + 6] == ["job 3: name=fail seed=1", "the loss is not finite"]
    assert "console.log" in lines[start + 3]


def test_without_keep_going_the_first_failure_is_the_last_start(runner):
    answer = runner("train", "-m", "name=fail,ok", "seed=0,1", "launch.keep_going=false")
    assert answer.code == 1
    assert states(the_sweep()) == ["FAILED", "WAITING", "WAITING", "WAITING"]
    assert "3 jobs are not started" in answer.out


def test_the_same_command_runs_only_what_is_not_completed(runner):
    command = ["train", "-m", "name=ok,fail", "seed=0,1"]
    assert runner(*command).code == 1
    assert attempts(the_sweep()) == [1, 1, 1, 1]
    answer = runner(*command, "launch.jobs=2")
    assert answer.code == 1 and "2 completed before, 2 to run" in answer.out
    assert attempts(the_sweep()) == [1, 1, 2, 2]


def test_more_values_of_an_axis_are_more_jobs_of_the_same_sweep(runner):
    assert runner("train", "-m", "seed=0,1", "name=ok").code == 0
    answer = runner("train", "-m", "seed=1,2,3", "name=ok")
    assert answer.code == 0 and "3 jobs (4 seed), 1 completed before, 2 to run" in answer.out
    place = the_sweep()
    assert [place.config(e)["seed"] for e in place.entries()] == [0, 1, 2, 3]
    assert attempts(place) == [1, 1, 1, 1]
    assert runner("train", "-m", "seed=0,1", "name=ok", "optimizer.lr=0.5").code == 0
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_an_experiment_that_was_edited_gives_new_jobs_and_keeps_the_old(runner):
    Path("own/experiment").mkdir(parents=True)
    file = Path("own/experiment/mine.yaml")
    text = "# @package _global_\n# Mine.\nname: ok\noptimizer:\n  lr: {}\n"
    file.write_text(text.format(0.1))
    command = ["train", "-m", "+experiment=mine", "seed=0,1", "-cd", "own"]
    assert runner(*command).code == 0
    file.write_text(text.format(0.2))
    assert runner(*command).code == 0
    place = the_sweep()
    assert [place.config(e)["optimizer"]["lr"] for e in place.entries()] == [0.1, 0.1, 0.2, 0.2]
    assert states(place) == ["COMPLETED"] * 4


def test_no_job_starts_when_one_is_wrong(runner):
    answer = runner("train", "-m", "seed=1,2", "weighting=equal,pcgrd", "trainer.max_steps=5,-5")
    assert answer.code == 2
    assert "did you mean 'pcgrad'?" in answer.err
    answer = runner(
        "train", "-m", "seed=1,2", "trainer.max_steps=5,-5", "trainer.batch_size=3,4", "trainer.accumulation=2"
    )
    assert answer.code == 2
    assert answer.err.count("error: ") == 2
    assert "not -5" in answer.err
    assert "trainer.batch_size=3 cannot be divided" in answer.err
    assert "(job 0 and 3 more: " in answer.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hydra/launcher=basic", "launch.jobs=2"),
        ("hydra.sweep.dir=x", "sweep_dir=DIR"),
        ("optimizer.lr=interval(0.1,0.2)", "runner tune"),
        ("run_dir=x", "sweep_dir=DIR"),
        ("launch.jobs=1,2", "about the whole sweep"),
        ("launch.slurm.time=5", "launch=slurm"),
    ],
)
def test_what_has_no_effect_on_a_sweep_is_refused(runner, override, words):
    answer = runner("train", "-m", "seed=0,1", "name=ok", override)
    assert answer.code == 2 and words in answer.err, answer.err
    assert list(Path().iterdir()) == []


def test_a_pinned_directory_holds_one_sweep_only(runner):
    assert runner("train", "-m", "seed=0,1", "name=ok", "sweep_dir=here").code == 0
    assert (Path("here/sweep.json")).is_file()
    answer = runner("train", "-m", "optimizer.lr=0.1,0.2", "name=ok", "sweep_dir=here")
    assert answer.code == 2 and "holds another sweep" in answer.err


def test_dry_run_lists_the_jobs_and_writes_nothing(runner, started):
    answer = runner("train", "-m", "seed=1,2", "--dry-run")
    lines = answer.out.splitlines()
    assert lines[0] == "2 jobs:"
    assert lines[1].split()[0::2] == ["0", "seed=1"]
    assert [(verb, config["seed"]) for verb, (config,) in started] == [("dry_run", 1)]
    assert list(Path().iterdir()) == []


# ---- stopping --------------------------------------------------------------------------------------------------------


def once(path: Path, action) -> threading.Thread:
    """Do something as soon as a file matching a pattern exists."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not list(Path().glob(str(path))) and time.monotonic() < deadline:
            time.sleep(0.005)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_ctrl_c_stops_resumably_and_the_rest_does_not_start(runner):
    watcher = once(Path("outputs/sweeps/*/jobs/000-*/environment.json"), lambda: os.kill(os.getpid(), signal.SIGINT))
    answer = runner("train", "-m", "name=slow,ok", "seed=0,1")
    watcher.join()
    assert answer.code == 75
    place = the_sweep()
    assert states(place) == ["STOPPED", "WAITING", "WAITING", "WAITING"]
    assert "runner resume outputs/sweeps/" in answer.err and "0 of 4 jobs are completed" in answer.err
    assert "once more ends them at once" in answer.out


def test_ctrl_c_twice_ends_a_deaf_job(runner):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = once(Path("outputs/sweeps/*/jobs/000-*/environment.json"), twice)
    began = time.monotonic()
    answer = runner("train", "-m", "name=deaf,ok")
    watcher.join()
    assert answer.code == 75 and time.monotonic() - began < 10
    assert states(the_sweep()) == ["STOPPED", "WAITING"]


def test_resume_and_cancel(runner):
    watcher = once(
        Path("outputs/sweeps/*/jobs/000-*/environment.json"), lambda: main_in_thread("cancel", str(the_sweep().path))
    )
    assert runner("train", "-m", "name=slow,ok", "seed=0").code == 75
    watcher.join()
    place = the_sweep()
    assert states(place) == ["STOPPED", "WAITING"]
    assert place.fronts() == []
    answer = runner("status", str(place.path))
    assert "1 stopped" in answer.out and "1 waiting" in answer.out and "runner resume" in answer.out
    # what the job is changes nothing: it is the configuration that it was frozen with
    for entry in place.entries():
        file = place.path / "configs" / f"{entry.stem}.json"
        file.write_text(file.read_text().replace('"slow"', '"ok"'))
    answer = runner("resume", str(place.path))
    assert answer.code == 0, answer.err
    assert states(place) == ["COMPLETED", "COMPLETED"] and attempts(place) == [2, 1]
    assert "nothing of" in runner("cancel", str(place.path)).out
    listed = json.loads(runner("status", str(place.path), "--json").out)
    assert [job["state"] for job in listed["jobs"]] == ["COMPLETED", "COMPLETED"]
    answer = runner("cancel", "outputs")
    assert answer.code == 2 and "not the directory of a sweep" in answer.err


def main_in_thread(*arguments: str) -> None:
    from runner.cli import cancel

    cancel.run(list(arguments[1:]))


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from runner.launching import pool, schedule
pool.worker_command = lambda path: [sys.executable, {fake!r}, str(path)]
schedule.TICK_S = 0.02
from runner.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def front(*arguments: str) -> subprocess.Popen:
    program = textwrap.dedent(PROGRAM).format(root=str(FAKE.parents[2]), fake=str(FAKE))
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_front_ends_share_the_jobs_and_none_runs_twice():
    gate = Path("gate").absolute()
    command = ["train", "-m", f"name='wait:{gate}'", "seed=range(4)"]
    both = [front(*command), front(*command)]
    deadline = time.monotonic() + 20
    while len(list(Path().glob("outputs/sweeps/*/jobs/*/environment.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.touch()
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert attempts(the_sweep()) == [1, 1, 1, 1]
    assert any("runs in another process" in output for output in outputs)


@pytest.mark.slow
def test_kill_minus_nine_of_the_front_end_and_again():
    gate = Path("gate").absolute()
    command = ["train", "-m", f"name=ok,'wait:{gate}'", "seed=range(2)", "launch.jobs=2"]
    first = front(*command)
    deadline = time.monotonic() + 20
    while len(list(Path().glob("outputs/sweeps/*/jobs/*/environment.json"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.communicate()
    gate.touch()
    second = front(*command)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    place = the_sweep()
    assert states(place) == ["COMPLETED"] * 4
    assert attempts(place)[:2] == [1, 1]  # what was completed is not touched


# ---- needed runs -----------------------------------------------------------------------------------------------------


def test_a_comparison_trains_each_baseline_once(runner):
    command = ["train", "-m", "weighting=equal,pcgrad", "seed=0,1", "tasks=[depth,edge]", "name=ok", "launch.jobs=2"]
    answer = runner(*command)
    assert answer.code == 0, answer.err
    assert "baseline  auto" in answer.out and "baseline=none" in answer.out
    assert "4 baselines: 4 to train first" in answer.out
    place = the_sweep()
    listed = place.info()["needs"]
    assert [(need["role"], need["tasks"]) for need in listed] == [("baseline", [t]) for t in ("depth", "edge")] * 2
    trained = sorted(Path("outputs/train").rglob("run.json"))
    assert len(trained) == 4
    signatures = {json.loads(path.read_text())["signature"] for path in trained}
    assert signatures == {need["signature"] for need in listed}
    for entry in place.entries():
        given = RunDirectory(place.directory(entry)).info()["needs"]
        assert [need["tasks"] for need in given] == [["depth"], ["edge"]]
        assert all(Path(need["path"]).is_dir() and need["signature"] in signatures for need in given)
    again = runner("train", "-m", "weighting=rlw,dwa", "tasks=[depth,edge]", "name=ok")
    assert again.code == 0 and "2 baselines: all are there" in again.out
    assert again.out.count("was there already") == 2 and "another process" not in again.out


def baseline_fails(monkeypatch) -> None:
    """Single-task runs of `edge` fail."""
    real = needs.baselines

    def changed(config):
        found = real(config)
        return [n if n.tasks != ("edge",) else Need.of("baseline", n.config | {"name": "fail"}) for n in found]

    monkeypatch.setattr(needs, "needs", changed)


def test_a_failed_baseline_costs_delta_m_only(runner, monkeypatch):
    baseline_fails(monkeypatch)
    answer = runner("train", "-m", "weighting=equal,pcgrad", "tasks=[depth,edge]", "name=ok")
    assert answer.code == 0, answer.err
    assert "1 of 2 needed runs failed" in answer.err and "baseline of edge" in answer.err
    place = the_sweep()
    assert states(place) == ["COMPLETED", "COMPLETED"]
    given = RunDirectory(place.directory(place.entries()[0])).info()["needs"]
    assert given[0]["path"] and given[1]["path"] is None


def test_a_failed_expert_fails_the_jobs_that_need_it_in_a_line(runner, monkeypatch):
    def experts(config):
        if config["name"] != "ok" or config["seed"] == 2:
            return []
        named = "expert" if config["seed"] == 0 else "fail"
        return [Need.of("expert", config | {"name": named, "tasks": ["depth"], "seed": config["seed"] + 10})]

    monkeypatch.setattr(needs, "needs", experts)
    answer = runner("train", "-m", "seed=0,1,2", "name=ok")
    assert answer.code == 1
    place = the_sweep()
    assert states(place) == ["COMPLETED", "FAILED", "COMPLETED"]
    assert attempts(place) == [1, 0, 1]
    assert "there is no expert of" in answer.err and "the loss is not finite" in answer.err
    monkeypatch.setattr(needs, "needs", lambda config: [])
    assert runner("train", "-m", "seed=0,1,2", "name=ok").code == 0


def test_an_interrupted_need_is_gone_on_with(runner):
    """A baseline that was stopped continues in its directory."""
    watcher = once(Path("outputs/train/**/environment.json"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    command = ["train", "-m", "weighting=equal,pcgrad", "tasks=[depth,edge]", "name=slow"]
    assert runner(*command).code == 75
    watcher.join()
    (run,) = (path.parent for path in Path("outputs/train").rglob("run.json"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"name": "ok"}))
    command[-1] = "name=ok"
    assert runner(*command).code == 0
    assert len(RunDirectory(run).info()["attempts"]) == 2
