"""`status`, `diff`, `resume`, `eval`: what is said about runs, from their files alone."""

from __future__ import annotations

import copy
import json
import os
import socket
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from runner.config import schema


def make_run(
    path: Path,
    *,
    status: str = "COMPLETED",
    pid: int | None = None,
    steps: int = 4,
    lr: float = 0.001,
    processes: int = 1,
    rmse: float | None = 0.5,
    checkpoints: tuple[str, ...] = ("step-00000002", "step-00000004"),
    **info: object,
) -> Path:
    """A run directory as the front end and the worker leave it."""
    path.mkdir(parents=True)
    config = {
        "optimizer": {"lr": lr},
        "trainer": asdict(schema.TrainerConfig(max_steps=4)),
        "launch": asdict(schema.LaunchConfig(num_processes=processes)),
        "name": "demo",
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    created = (datetime.now(UTC) - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    attempt = {"started": created, "status": status, "host": socket.gethostname(), "pid": pid or 2**22 + 1}
    base = {
        "schema": 1,
        "status": status,
        "verb": "train",
        "name": "demo",
        "argv": ["train", "+experiment=demo"],
        "signature": "3fa9c1d2",
        "seed": 0,
        "created": created,
        "attempts": [attempt],
    }
    (path / "run.json").write_text(json.dumps(base | info))
    rows = [
        {"step": step, "attempt": 1, "split": "validation", "task": "depth", "metric": "rmse", "value": 1 / step}
        for step in range(1, steps + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "to')
    for name in checkpoints:
        (path / "checkpoints" / name).mkdir(parents=True)
        (path / "checkpoints" / name / "DONE").write_text("{}")
    (path / "checkpoints").mkdir(exist_ok=True)
    (path / "checkpoints" / "step-00000099").mkdir()  # without DONE: does not exist
    if checkpoints:
        (path / "checkpoints" / "latest").symlink_to(checkpoints[-1])
        (path / "checkpoints" / "best").symlink_to(checkpoints[0])
    if rmse is not None:
        result = {"status": "COMPLETED", "split": "test", "tasks": {"depth": {"rmse": rmse, "abs_err": 0.25}}}
        result["headline"] = {"depth": "abs_err"}
        (path / "result.json").write_text(json.dumps(result))
    return path


@pytest.fixture
def folder() -> Path:
    return Path("outputs/train/demo")


def test_status_of_a_completed_run(runner, folder):
    make_run(folder / "a")
    answer = runner("status", str(folder / "a"))
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "outputs/train/demo/a",
        "  status       COMPLETED",
        "  command      runner train +experiment=demo",
        "  step         4 of 4",
        "  started      3 h ago",
        "  signature    3fa9c1d2, seed 0",
        "  checkpoints  step-00000002 (best), step-00000004 (latest)",
        "",
        "task   test     value",
        "depth  rmse     0.5",
        "depth  abs_err  0.25",
    ]


def test_status_tells_a_living_run_from_a_killed_one(runner, folder):
    make_run(folder / "alive", status="RUNNING", pid=os.getpid(), rmse=None)
    make_run(folder / "killed", status="RUNNING", rmse=None)
    alive, killed = runner("status", str(folder / "alive")).out, runner("status", str(folder / "killed")).out
    assert "RUNNING\n" in alive
    assert "runner resume" not in alive
    assert "its process is gone" in killed
    assert f"see: runner resume {folder / 'killed'}" in killed
    assert "newest metrics, validation:" in killed
    assert "depth  rmse    0.25" in killed


def test_status_of_a_failed_run_says_why(runner, folder):
    message = [{"status": "FAILED", "message": "task 'depth' has a NaN loss"}]
    make_run(folder / "a", status="FAILED", rmse=None, attempts=message * 2, checkpoints=())
    out = runner("status", str(folder / "a")).out
    assert "  attempts     2\n" in out
    assert "  message      task 'depth' has a NaN loss" in out
    assert "  checkpoints  none yet" in out


def test_status_of_a_folder_has_a_line_per_run(runner, folder):
    make_run(folder / "20260101T000000Z-a")
    make_run(folder / "20260102T000000Z-b", status="STOPPED", rmse=None, steps=2)
    (make_run(folder / "20260103T000000Z-c") / "run.json").write_text("{")
    for arguments in (["status"], ["status", "outputs"]):
        lines = runner(*arguments).out.splitlines()
        assert [line.split()[:3] for line in lines] == [
            ["run", "status", "step"],
            ["train/demo/20260101T000000Z-a", "COMPLETED", "4"],
            ["train/demo/20260102T000000Z-b", "STOPPED", "2"],
            ["train/demo/20260103T000000Z-c", "damaged"],
        ]
        assert lines[1].endswith("depth abs_err 0.25")


def test_status_of_a_folder_goes_on_after_damaged_runs(runner, folder):
    make_run(folder / "whole")
    make_run(folder / "cut")
    (folder / "cut" / "result.json").write_text("")
    answer = runner("status", str(folder))
    assert answer.code == 0
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line}
    assert "result.json is damaged" in lines["cut"]
    assert "abs_err 0.25" in lines["whole"]


def test_status_for_scripts(runner, folder):
    make_run(folder / "a")
    (only,) = json.loads(runner("status", "--json").out)
    assert only["step"] == 4
    assert only["run"]["status"] == "COMPLETED"
    assert only["result"]["tasks"]["depth"]["rmse"] == 0.5


def test_diff_of_runs_marks_what_affects_weights(runner, folder):
    a = make_run(folder / "a", lr=0.001, processes=1, rmse=0.5)
    b = make_run(folder / "b", lr=0.01, processes=2, rmse=0.4)
    out = runner("diff", str(a), str(b)).out
    assert out.splitlines() == [
        "  key                   A      B",
        "  launch.num_processes  1      2",
        "* optimizer.lr          0.001  0.01",
        "  * affects weights",
        "",
        "task   metric   A     B     B - A",
        "depth  rmse     0.5   0.4   -0.1",
        "depth  abs_err  0.25  0.25  +0",
    ]


def test_diff_of_equal_runs_and_of_unfinished_ones(runner, folder):
    a, b = make_run(folder / "a"), make_run(folder / "b", rmse=None)
    assert runner("diff", str(a), str(b)).out == (
        "the configurations are the same\n\nno metrics to compare: B has no result yet\n"
    )


def test_diff_of_options_and_files(runner):
    Path("mine.yaml").write_text("_target_: runner.weighting.pcgrad.PCGrad\nheads: weighted\n")
    assert "heads     (absent)" in runner("diff", "weighting/equal", "weighting/pcgrad").out
    assert "heads" in runner("diff", "weighting/pcgrad", "mine.yaml").out
    same = runner("diff", "weighting/equal", "weighting/equal")
    assert (same.code, same.out) == (0, "the configurations are the same\n")


def test_resume_finds_the_one_unfinished_run(runner, started, folder):
    make_run(folder / "a")
    b = make_run(folder / "b", status="STOPPED")
    assert runner("resume", str(folder)).code == 0
    assert runner("resume", str(b)).code == 0
    assert runner("resume", str(folder / "a")).code == 0  # answers with its result
    assert started == [("resume", (b,)), ("resume", (b,)), ("resume", (folder / "a",))]


def test_eval_takes_a_run_or_the_newest_in_a_folder(runner, started, folder):
    make_run(folder / "20260101T000000Z-a")
    newest = make_run(folder / "20260102T000000Z-b")
    make_run(folder / "20260103T000000Z-c", checkpoints=(), status="RUNNING")
    assert runner("eval", str(folder), "split=validation", "checkpoint=2", "launch.device=cpu").code == 0
    ((name, (config, argv)),) = started
    assert name == "evaluate"
    assert argv == ["eval", str(folder), "split=validation", "checkpoint=2", "launch.device=cpu"]
    assert config["run"] == str(newest.absolute())
    assert (config["split"], config["checkpoint"], config["launch"]["device"]) == ("validation", 2, "cpu")
    assert config["output_dir"] == str(Path("outputs").absolute())


def test_eval_of_a_folder_with_odd_characters(runner, started):
    run = make_run(Path("a b") / "it's, [x]=1" / "run")
    assert runner("eval", str(run.parent.parent)).code == 0
    assert started[0][1][0]["run"] == str(run.absolute())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nowhere"], "there is no folder 'nowhere'"),
        (["status", "outputs/tra"], "did you mean 'outputs/train'?"),
        (["status", "empty"], "there is no run in 'empty'"),
        (["status", "damaged"], "cannot be read"),
        (["status", "unframed"], "config.yaml' cannot be read"),
        (["resume"], "DIR is missing"),
        (["resume", "nowhere"], "there is no folder 'nowhere'"),
        (["resume", "empty"], "there is no unfinished run"),
        (["resume", "outputs/train/many"], "there are 2 runs"),
        (["resume", "outputs/train/demo"], "there is no unfinished run"),
        (["resume", "a", "b"], "too many arguments: 'b'"),
        (["resume", "a", "seed=1"], "too many arguments: 'seed=1'"),
        (["eval"], "DIR is missing"),
        (["eval", "empty"], "there is no trained run in"),
        (["eval", "outputs/train/bare"], "has no checkpoint yet"),
        (["eval", "outputs/train/demo", "checkpoint=3"], "there is no checkpoint '3'"),
        (["eval", "outputs/train/demo", "checkpoint=bset"], "did you mean 'best'?"),
        (["eval", "outputs/train/demo", "split=tst"], "did you mean 'test'?"),
        (["eval", "outputs/train/demo", "splt=test"], "did you mean 'split'?"),
        (["eval", "outputs/train/demo", "-m"], "without -m"),
        (["eval", "outputs/train/demo", "--dry-run"], "unknown flag '--dry-run'"),
        (["diff", "outputs/train/demo/a"], "B is missing"),
        (["diff", "nowhere/x", "weighting/equal"], "unknown group 'nowhere'"),
        (["diff", "./nowhere", "weighting/equal"], "there is no run, file or option './nowhere'"),
        (["diff", "list.yaml", "weighting/equal"], "is not a mapping"),
        (["diff", "torn.yaml", "weighting/equal"], "cannot be read"),
        (["diff", "outputs/train/many", "weighting/equal"], "there are 2 runs"),
    ],
)
def test_what_is_no_run(runner, started, folder, arguments, message):
    make_run(folder / "a")
    make_run(Path("outputs/train/many/a"), status="STOPPED")
    make_run(Path("outputs/train/many/b"), status="STOPPED")
    make_run(Path("outputs/train/bare/a"), checkpoints=())
    (make_run(Path("damaged")) / "run.json").write_text("[1")
    (make_run(Path("unframed")) / "config.yaml").write_text("a: [")
    Path("empty").mkdir()
    Path("list.yaml").write_text("- 1\n")
    Path("torn.yaml").write_text("a: [1\n")
    before = copy.deepcopy(sorted(map(str, Path().rglob("*"))))
    answer = runner(*arguments)
    assert answer.code == 2, answer
    assert message in answer.err
    assert len(answer.err.splitlines()) <= 3
    assert started == []
    assert sorted(map(str, Path().rglob("*"))) == before
