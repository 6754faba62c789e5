"""`runner sync` and W&B sweep agents, as far as there is no server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runner.cli import sync
from runner.launching.rundir import RunDirectory
from runner.tracking import wandb_sink

ROOT = Path(__file__).resolve().parents[2]


def recorded(path: Path, *pieces: str, synced: tuple[str, ...] = ()) -> Path:
    """A run with offline pieces, one per attempt."""
    for piece in pieces:
        folder = path / "wandb" / f"offline-run-{piece}-abc"
        folder.mkdir(parents=True)
        (folder / "run-abc.wandb").touch()
        if piece in synced:
            (folder / "run-abc.wandb.synced").touch()
    (path / "run.json").write_text("{}")
    return path


@pytest.fixture
def outputs() -> Path:
    recorded(Path("outputs/train/demo/a"), "20260101_000001", "20260101_000002", synced=("20260101_000001",))
    recorded(Path("outputs/sweeps/s/jobs/000-x"), "20260102_000001")
    recorded(Path("outputs/sweeps/s/jobs/001-y"), "20260103_000001", synced=("20260103_000001",))
    return Path("outputs")


def test_the_lines_that_upload_are_printed(runner, outputs):
    answer = runner("sync", "--dry-run", "--project", "mine")
    assert answer.code == 0
    folder = "outputs/train/demo/a/wandb/offline-run-2026010"
    assert answer.out.splitlines() == [
        "wandb sync --project mine outputs/sweeps/s/jobs/000-x/wandb/offline-run-20260102_000001-abc",
        f"wandb sync --project mine --include-synced {folder}1_000001-abc {folder}1_000002-abc",
    ]
    assert len(runner("sync", "--dry-run", "outputs/sweeps/s").out.splitlines()) == 1


def test_without_an_account_the_lines_are_printed_and_nothing_is_sent(runner, outputs, monkeypatch):
    monkeypatch.setattr(wandb_sink, "has_key", lambda: False)
    answer = runner("sync")
    assert answer.code == 2 and "wandb login" in answer.err and answer.out.count("wandb sync") == 2


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1)])
def test_pieces_of_a_run_are_sent_together_with_those_that_were_sent_before(
    runner, outputs, monkeypatch, code, expected
):
    calls = []

    class Done:
        returncode = code

    def call(command, env, check):
        calls.append((command, env))
        return Done

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb_sink, "has_key", lambda: True)
    monkeypatch.setattr(sync.subprocess, "run", call)
    answer = runner("sync", "outputs")
    assert answer.code == expected
    assert [command[3] for command, _ in calls] == ["sync", "sync"]
    pieces = [str(p) for p in sorted(Path("outputs/train/demo/a/wandb").iterdir())]
    assert calls[1][0][4:] == ["--include-synced", *pieces] and "--include-synced" not in calls[0][0]
    assert all("WANDB_MODE" not in env for _, env in calls)
    assert ("were not uploaded" in answer.err) == bool(code)


def test_everything_uploaded_is_said(runner):
    recorded(Path("outputs/train/demo/a"), "1", synced=("1",))
    assert "uploaded already" in runner("sync").out
    Path("empty").mkdir()
    assert "no W&B run" in runner("sync", "empty").out


def test_what_an_agent_runs_is_a_valid_command(runner):
    """W&B itself makes the command from the sweep's YAML and the values it has chosen."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    config = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text())
    chosen = {"optimizer.lr": 0.0031, "weighting": "pcgrad", "seed": 0}
    assert set(chosen) == set(config["parameters"])
    values = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    command = []
    for word in create_sweep_command(config["command"]):
        command += values["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    assert command[:2] == ["runner", "train"]
    answer = runner("validate", *command[2:])
    assert answer.code == 0, answer.err
    split, task, metric = config["metric"]["name"].split("/")
    assert (split, task) == ("validation", "segmentation") and metric == "miou"


def test_a_run_that_an_agent_starts_has_the_agents_id(monkeypatch):
    config = {"name": "a", "seed": 0, "output_dir": "outputs"}
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert RunDirectory.claim(config, "train", []).info()["wandb_id"] != "given"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert RunDirectory.claim(config, "train", []).info()["wandb_id"] == "given"
    assert RunDirectory.claim(config, "train", [], role="baseline").info()["wandb_id"] != "given"
