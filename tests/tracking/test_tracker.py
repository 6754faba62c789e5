"""The tracker as a whole, W&B's offline files read back without W&B's own code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from runner.tracking import Panel, Tracker, read_metrics
from runner.tracking import wandb_sink as sink_module
from tests.tracking.wandb_files import segments

CONFIG = {"name": "demo", "seed": 3, "optimizer": {"lr": 0.01, "betas": [0.9, 0.99]}}
RESULT = {"status": "COMPLETED", "split": "test", "tasks": {"depth": {"rmse": 0.71}}, "steps": 4, "wall_s": 2.0}
TASKS = {"depth": SimpleNamespace(headline="rmse", directions={"rmse": "down"})}


def python(program: str, **environment: str) -> str:
    """Run a program in a process of its own, with a W&B service of its own; returns what it prints."""
    done = subprocess.run([sys.executable, "-c", program], env=alone(environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(changes) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | changes


def tracker(run_dir: Path, attempt=1, resume_step=0, *, console="lines", verb="train", **wandb) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    config = CONFIG | {"tracking": {"console": console, "log_every": 2, "wandb": wandb}}
    return Tracker(run_dir, config, attempt, "sig-abc", resume_step, verb=verb)


def train(track: Tracker, steps) -> None:
    for step in steps:
        track.scalars(step, "train", {"depth": {"loss": 1.0 / step}, "": {"lr": 0.01}})
        track.progress(step, 4, {"depth": 1.0 / step}, 0.01, 12.0, 4.0 - step)


def values(history, key):
    return {row["step"]: row[key] for row in history if key in row}


def test_importing_it_is_cheap():
    program = "import sys, runner.tracking; print(sorted({'torch', 'wandb', 'PIL', 'rich'} & set(sys.modules)))"
    assert python(program).strip() == "[]"


def test_without_wandb_the_package_is_not_even_imported(tmp_path):
    program = f"""
import sys
from pathlib import Path
from runner.tracking import Tracker
tracker = Tracker(Path({str(tmp_path)!r}), {{"tracking": {{"wandb": {{"mode": "disabled"}}}}}}, 1, "x", 0)
tracker.scalars(1, "train", {{"a": {{"loss": 1.0}}}})
tracker.close(0)
print("wandb" in sys.modules, "torch" in sys.modules)
"""
    assert python(program).splitlines()[-1] == "False False"
    assert not (tmp_path / "wandb").exists()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_an_offline_run_from_end_to_end(tmp_path, capfd):
    run_dir = tmp_path / "run"
    track = tracker(run_dir, project="mine", entity="us", tags=["a", "b"], notes="a note")
    train(track, (1, 2))
    track.scalars(2, "validation", {"depth": {"rmse": 0.9}, "": {"score": 0.5}})
    picture = np.zeros((8, 8, 3), np.uint8)
    track.panels(2, "validation", [Panel("x", picture, [("depth", picture, picture)])])
    track.panels(2, "validation", [Panel("y", "some words", [("intent", "a", "b")])])
    track.scalars(1, "test", {"depth": {"rmse": 0.71}})  # the report on an earlier, best checkpoint
    track.table(RESULT | {"reference": {"depth": {"rmse": 0.5}}}, TASKS)
    track.plots()
    track.close(EXIT_DONE)
    track.close(EXIT_DONE)

    (segment,) = segments(run_dir)
    assert segment.run.run_id == "sig-abc"
    assert (segment.run.project, segment.run.entity) == ("mine", "us")
    assert (segment.run.run_group, segment.run.job_type, segment.run.display_name) == ("demo", "train", "run")
    assert list(segment.run.tags) == ["a", "b"]
    assert segment.run.notes == "a note"
    assert segment.config["optimizer"] == CONFIG["optimizer"]
    assert segment.config["seed"] == 3
    assert values(segment.history, "train/depth/loss") == {1: 1.0, 2: 0.5}
    assert values(segment.history, "train/lr") == {1: 0.01, 2: 0.01}
    assert values(segment.history, "validation/score") == {2: 0.5}
    assert values(segment.history, "test/depth/rmse") == {1: 0.71}
    assert segment.axes == {"*": "step"}
    assert segment.summary["result/depth/rmse"] == 0.71
    assert segment.summary["result/status"] == "COMPLETED"
    assert any(name.startswith("media/images/validation/panels") for name in segment.files)
    assert any(name.startswith("media/images/validation/strip_depth") for name in segment.files)
    assert any(name.startswith("media/table/validation/examples") for name in segment.files)
    assert any(name.startswith("media/images/plots/losses") for name in segment.files)
    assert segment.exit_code == 0

    assert sorted(p.name for p in (run_dir / "panels").iterdir()) == [
        "frames",
        "strip-depth.png",
        "validation-step-00000002.md",
        "validation-step-00000002.png",
    ]
    printed, errors = capfd.readouterr()
    assert "rmse 0.71 ↓" in printed
    assert "published   depth rmse 0.5" in printed
    last = [line.split() for line in printed.splitlines()[-5:]]
    assert last[0] == ["result", "run/result.json"]
    assert last[1] == ["panels", "run/panels"]
    assert last[2] == ["plots", "run/plots"]
    assert last[3][:3] == ["W&B", "wandb", "sync"]
    assert Path(last[3][3]).is_dir()
    assert last[4] == ["next", "runner", "eval", "run=run"]
    assert "wandb:" not in printed + errors, "W&B is silent"


def test_a_resumed_run_is_the_same_run_to_wandb(tmp_path, capsys):
    run_dir = tmp_path / "run"
    first = tracker(run_dir)
    train(first, (1, 2, 3))
    first.close(EXIT_STOPPED)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["next", "runner", "resume", "run"]
    time.sleep(1.1)  # W&B names a segment by the second
    second = tracker(run_dir, attempt=2, resume_step=2)
    train(second, (3, 4))
    second.close(EXIT_DONE)

    a, b = segments(run_dir)
    assert {a.run.run_id, b.run.run_id} == {"sig-abc"}
    assert (a.exit_code, a.preempting) == (EXIT_STOPPED, True)
    assert (b.exit_code, b.preempting) == (EXIT_DONE, False)
    assert values(a.history, "train/depth/loss") == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert values(b.history, "train/depth/loss") == {3: 1 / 3, 4: 0.25}
    # W&B's own step goes on where the first segment was: uploading both overwrites nothing but what was done again.
    assert [row["_step"] for row in a.history] == [1, 2, 3]
    assert [row["_step"] for row in b.history] == [3, 4]
    assert b.config["seed"] == 3
    assert "wandb sync run/wandb/offline-run-*" in capsys.readouterr().out

    losses = [(row["step"], row["attempt"]) for row in read_metrics(run_dir / "metrics.jsonl") if row["task"]]
    assert losses == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_steps_only_go_forward_for_wandb(tmp_path):
    track = tracker(tmp_path / "run", console="quiet")
    train(track, (5, 6))
    track.scalars(2, "test", {"depth": {"rmse": 0.5}})
    track.scalars(2, "test", {"edges": {"f": 0.6}})
    train(track, (7,))
    track.scalars(7, "validation", {"depth": {"rmse": 0.4}})
    track.close(EXIT_DONE)
    (segment,) = segments(tmp_path / "run")
    assert values(segment.history, "train/depth/loss") == {5: 1 / 5, 6: 1 / 6, 7: 1 / 7}
    assert values(segment.history, "test/depth/rmse") == {2: 0.5}
    assert values(segment.history, "test/edges/f") == {2: 0.6}
    assert values(segment.history, "validation/depth/rmse") == {7: 0.4}
    own = [row["_step"] for row in segment.history]
    assert own == sorted(set(own))


def test_a_failed_run_is_marked_failed(tmp_path, capsys):
    track = tracker(tmp_path / "run")
    train(track, (1,))
    track.close(EXIT_FAILED)
    assert segments(tmp_path / "run")[0].exit_code == EXIT_FAILED
    assert capsys.readouterr().out.splitlines()[-1].split() == ["next", "runner", "status", "run"]


def test_a_killed_run_keeps_what_it_had_said(tmp_path):
    program = f"""
import os, time
from pathlib import Path
from runner.tracking import Tracker
tracker = Tracker(Path({str(tmp_path)!r}), {{"name": "demo", "tracking": {{}}}}, 1, "sig-abc", 0)
for step in range(1, 6):
    tracker.scalars(step, "train", {{"depth": {{"loss": 1.0 / step}}}})
time.sleep({sink_module.FLUSH_S} + 2)
print("ready", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", program], env=alone({}), stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    (segment,) = segments(tmp_path)
    assert set(values(segment.history, "train/depth/loss")) >= {1, 2, 3, 4}
    assert segment.config["name"] == "demo"


# ---- W&B in trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["log", "define_metric"])
def test_trouble_in_wandb_is_told_once_and_never_stops_a_run(tmp_path, capsys, monkeypatch, method):
    import wandb

    calls = []

    def fail(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("the service\nis gone")

    monkeypatch.setattr(wandb.Run, method, fail)
    track = tracker(tmp_path / "run")
    train(track, (1, 2, 3))
    track.table(RESULT, TASKS)
    track.close(EXIT_DONE)
    printed = capsys.readouterr().out
    assert printed.count("W&B stopped recording (RuntimeError: the service is gone)") == 1
    assert len(calls) == 1
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 6
    assert segments(tmp_path / "run")[0].exit_code == 0, "what was recorded before is finished properly"


def test_a_wandb_that_does_not_start(tmp_path, capsys, monkeypatch):
    def fail(**arguments):
        raise OSError("no room")

    monkeypatch.setattr(sink_module, "_init", fail)
    track = tracker(tmp_path / "run")
    train(track, (1,))
    track.close(EXIT_DONE)
    printed = capsys.readouterr().out
    assert "W&B does not start (OSError: no room): metrics.jsonl only" in printed
    assert "wandb sync" not in printed


def test_a_wandb_that_does_not_finish(tmp_path, capsys, monkeypatch):
    import wandb

    real = wandb.Run.finish

    def fail(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise TimeoutError("upload")

    monkeypatch.setattr(wandb.Run, "finish", fail)
    track = tracker(tmp_path / "run")
    track.close(EXIT_DONE)
    assert "TimeoutError: upload" in capsys.readouterr().out


def test_without_the_package_there_is_one_notice(tmp_path, capsys, monkeypatch):
    find = sink_module.importlib.util.find_spec
    monkeypatch.setattr(
        sink_module.importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest)
    )
    track = tracker(tmp_path / "run")
    train(track, (1,))
    track.close(EXIT_DONE)
    assert capsys.readouterr().out.count("wandb is not installed") == 1
    assert not (tmp_path / "run" / "wandb").exists()


def test_online_without_a_key_goes_offline_and_never_asks(tmp_path, capsys, monkeypatch):
    def ask(*args, **kwargs):
        raise AssertionError("a key was asked for")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    track = tracker(tmp_path / "run", mode="online")
    train(track, (1,))
    track.close(EXIT_DONE)
    assert "note: W&B has no API key here: recording offline" in capsys.readouterr().out
    assert values(segments(tmp_path / "run")[0].history, "train/depth/loss") == {1: 1.0}


def test_the_configured_mode_wins_over_the_environment(tmp_path):
    program = f"""
from pathlib import Path
from runner.tracking import Tracker
tracker = Tracker(Path({str(tmp_path)!r}), {{"name": "demo", "tracking": {{}}}}, 1, "sig-abc", 0)
tracker.scalars(1, "train", {{"a": {{"loss": 1.0}}}})
tracker.close(0)
"""
    python(program, WANDB_MODE="disabled", WANDB_RUN_ID="other", WANDB_PROJECT="other")
    (segment,) = segments(tmp_path)
    assert (segment.run.run_id, segment.run.project) == ("sig-abc", "runner")


@pytest.mark.slow
def test_online_without_a_network_goes_offline(tmp_path):
    program = f"""
from pathlib import Path
from runner.tracking import Tracker, wandb_sink
wandb_sink.INIT_TIMEOUT_S = 3
settings = {{"console": "lines", "wandb": {{"mode": "online"}}}}
tracker = Tracker(Path({str(tmp_path)!r}), {{"name": "demo", "tracking": settings}}, 1, "sig-abc", 0)
tracker.scalars(1, "train", {{"a": {{"loss": 1.0}}}})
tracker.close(0)
"""
    printed = python(program, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "W&B cannot be reached: recording offline" in printed
    assert values(segments(tmp_path)[0].history, "train/a/loss") == {1: 1.0}


# ---- small things -------------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_written_is_told_once(tmp_path, capsys):
    track = tracker(tmp_path / "run", mode="disabled")
    (tmp_path / "run" / "panels").write_text("in the way")
    picture = np.zeros((8, 8, 3), np.uint8)
    for _ in range(2):
        track.panels(2, "validation", [Panel("x", picture, [("depth", picture, picture)])])
    track.panels(2, "validation", [])
    track.close(EXIT_DONE)
    printed = capsys.readouterr().out
    assert printed.count("prediction panels cannot be written") == 1
    assert "  panels " not in printed


def test_messages_go_to_the_log_even_when_the_console_is_quiet(tmp_path, capsys, caplog):
    caplog.set_level("INFO", logger="runner")
    track = tracker(tmp_path / "run", console="quiet", mode="disabled")
    track.message("hello")
    track.close(EXIT_DONE)
    assert "hello" not in capsys.readouterr().out
    assert "hello" in caplog.text


def test_paths_can_be_pasted_into_a_shell(tmp_path, capsys, monkeypatch):
    track = tracker(tmp_path / "a run", mode="disabled")
    track.close(EXIT_STOPPED)
    assert "runner resume 'a run'" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracker(tmp_path / "run", mode="disabled").close(EXIT_STOPPED)
    assert f"runner resume {tmp_path / 'run'}" in capsys.readouterr().out


def test_evaluating_offers_no_further_evaluation(tmp_path, capsys):
    track = tracker(tmp_path / "run", mode="disabled", verb="eval")
    track.close(EXIT_DONE)
    assert "runner eval" not in capsys.readouterr().out
