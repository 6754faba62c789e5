"""Run directories in every state are read, and none stops a report."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from pathlib import Path

import pytest

from runner.errors import UserError
from runner.reporting.read import as_values, load, read_rows, read_run
from tests.reporting.synthetic import make_config, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "20260101T120000Z-1f3a9c2e-ab12", make_config(), ["+experiment=demo"])


def change(run: Path, **values: object) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | values))


def test_a_completed_run(run):
    found = read_run(run)
    assert (found.state, found.cause, found.verb, found.seed) == ("completed", "", "train", 0)
    assert found.argv == ["train", "+experiment=demo"]
    assert set(found.values()) == set(found.values("validation")) == {"segmentation", "depth", "normals", "edge"}
    assert found.values("nowhere") == {}


@pytest.mark.parametrize(
    ("status", "attempt", "state", "cause"),
    [
        ("CLAIMED", {}, "waiting", "has not begun"),
        ("STOPPED", {"message": "stopped by SIGTERM"}, "stopped", "stopped by SIGTERM"),
        ("FAILED", {"message": "ValueError: a\nb"}, "failed", "ValueError: a b"),
        ("FAILED", {}, "failed", "RuntimeError: the last line of the log"),
        ("RUNNING", {"host": "elsewhere", "pid": 1}, "running", ""),
        ("RUNNING", {"host": socket.gethostname(), "pid": os.getpid()}, "running", ""),
        ("RUNNING", {"host": socket.gethostname(), "pid": 2**22 + 1}, "killed", "its process is gone"),
        ("DREAMING", {}, "damaged", "run.json has the unknown status 'DREAMING'"),
    ],
)
def test_states(run, status, attempt, state, cause):
    change(run, status=status, attempts=[attempt])
    (run / "train.log").write_text("Traceback\nRuntimeError: the last line of the log\n\n")
    found = read_run(run)
    assert (found.state, found.cause) == (state, cause)
    assert (found.step, found.goal) == (300, 300)


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("run.json", '{"status": ', "run.json cannot be read"),
        ("run.json", "[]", "run.json is not a mapping"),
        ("run.json", None, "run.json is missing"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "just words", "config.yaml cannot be read: not a mapping"),
        ("config.yaml", None, "config.yaml cannot be read"),
        ("result.json", "", "completed, but result.json cannot be read"),
        ("result.json", None, "completed, but result.json is missing"),
        ("result.json", "{}", "completed, but result.json has no metrics"),
    ],
)
def test_damage_is_a_cause_and_not_an_error(run, file, content, cause):
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    (found,) = load([run]).runs
    assert found.state == "damaged" and found.cause.startswith(cause)


def test_files_that_are_not_text_are_damage_too(run):
    for name in ("run.json", "config.yaml", "result.json"):
        copy = run.with_name(f"copy-of-{name}")
        shutil.copytree(run, copy)
        (copy / name).write_bytes(b"\xff\xfe\x00garbage")
        assert read_run(copy).state == "damaged"


def test_a_sweep_gives_its_jobs_and_those_that_have_not_begun(sweep):
    found = load([sweep])
    states = [run.state for run in found.runs]
    assert (states.count("completed"), states.count("failed")) == (6, 1)
    assert (states.count("running"), states.count("waiting")) == (1, 1)
    assert found.sweeps[0].axes == ["weighting", "seed"]
    waiting = next(run for run in found.runs if run.state == "waiting")
    assert waiting.argv == ["train", "weighting=nash_mtl", "seed=2"]


def test_a_job_that_waits_has_the_configuration_that_was_frozen_for_it(sweep, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sweep, copy)
    job = json.loads((copy / "sweep.json").read_text())["jobs"][8]
    (copy / "configs").mkdir()
    name = job["directory"].removeprefix("jobs/")
    (copy / "configs" / f"{name}.json").write_text(json.dumps({"seed": 2, "weighting": {"_target_": "x.Y"}}))
    waiting = next(run for run in load([copy]).runs if run.state == "waiting")
    assert waiting.seed == 2


def test_a_run_counts_once_however_often_it_is_named(sweep):
    assert len(load([sweep, sweep.parent, sweep / "jobs"]).runs) == len(load([sweep]).runs)


def test_runs_below_a_hidden_folder_or_a_run_are_not_looked_for(run):
    write_run(run / "checkpoints" / "x", make_config())
    write_run(run.parent / ".trash" / "x", make_config())
    assert [found.path for found in load([run.parent]).runs] == [run]


def test_other_peoples_folders_are_not_runs(tmp_path, run):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("a: 1")
    (tmp_path / "20260101T120000Z-1f3a9c2e-ab13").mkdir()
    (tmp_path / "20260101T120000Z-1f3a9c2e-ab13" / "config.yaml").write_text("a: 1")
    assert [found.state for found in load([tmp_path]).runs] == ["completed", "damaged"]


def test_paths_without_runs_are_said_all_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        load([tmp_path / "empty", tmp_path / "nowhere"])
    assert [problem.what for problem in caught.value.problems] == [
        f"there is no run in '{tmp_path / 'empty'}'",
        f"there is no folder '{tmp_path / 'nowhere'}'",
    ]


def test_a_broken_sweep_file_hides_no_run(sweep, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sweep, copy)
    (copy / "sweep.json").write_text("{")
    found = load([copy])
    assert not found.sweeps
    assert sum(run.state == "completed" for run in found.runs) == 6
    assert next(run for run in found.runs if run.path.name == "sweep.json").state == "damaged"


def test_rows_survive_a_torn_line(run):
    whole = read_rows(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 301, "att')
    assert read_rows(run) == whole
    assert read_rows(run / "nowhere") == []


def test_null_is_nan_and_words_are_no_numbers():
    values = as_values({"a": {"x": None, "y": 1, "z": "high", "w": True}, "b": 3})
    assert math.isnan(values["a"].pop("x"))
    assert values == {"a": {"y": 1.0}}
