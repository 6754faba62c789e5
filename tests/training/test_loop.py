"""Switches of the loop, each through a run of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train
from tests.support import TINY, newest_run, rows, runner, weights
from tests.support import train as train_in_a_process


def run(place: Path, *overrides: str) -> Path:
    config = finalize(compose("train", [*TINY, f"output_dir={place}", *overrides]))
    directory = RunDirectory.claim(config, "train", [])
    assert train(directory, StopFlag()) == 0
    return directory.path


def result(path: Path) -> dict:
    return json.loads((path / "result.json").read_text())


def test_patience_stops_early_and_keeps_the_best(tmp_path):
    path = run(tmp_path, "trainer.max_steps=40", "trainer.eval_every=2", "trainer.patience=2", "optimizer.lr=1e-12")
    found = result(path)
    assert found["steps"] < 40 and found["best_step"] == found["steps"] - 4
    assert (path / "checkpoints" / "best").resolve().name == f"step-{found['best_step']:08d}"


def test_epochs_are_passes_over_the_data(tmp_path):
    path = run(tmp_path, "trainer.max_steps=null", "trainer.epochs=2", "mixture.train=20")
    assert result(path)["steps"] == 2 * 3  # 20 scenes in batches of 8


def test_ema_is_what_is_evaluated_and_what_eval_repeats(tmp_path):
    path = run(tmp_path, "trainer.max_steps=6", "trainer.ema=0.9")
    plain = run(tmp_path, "trainer.max_steps=6")
    for name, value in weights(plain).items():
        assert torch.equal(weights(path)[name], value), "averaging must not disturb training"
    assert result(path)["tasks"] != result(plain)["tasks"]
    done = runner("eval", f"run={path}", f"output_dir={tmp_path / 'eval'}")
    assert done.returncode == 0, done.stderr
    assert result(newest_run(tmp_path / "eval"))["tasks"] == result(path)["tasks"]


def test_clipping_bounds_the_step(tmp_path):
    options = [
        "trainer.max_steps=1",
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.lr=1.0",
        "trainer.eval_every=9",
    ]
    clipped = run(tmp_path, *options, "trainer.clip_norm=0.001")
    start = run(tmp_path, *options, "trainer.clip_norm=1e-12")
    squares = sum(
        float((value - weights(start)[name]).double().square().sum())
        for name, value in weights(clipped).items()
        if "running" not in name and value.is_floating_point()
    )
    assert squares**0.5 == pytest.approx(0.001, rel=1e-3)


@pytest.mark.slow
def test_bf16_trains_close_to_fp32(tmp_path):
    # Accelerate keeps its precision for the life of a process.
    low = train_in_a_process(tmp_path / "low", *TINY, "trainer.max_steps=4", "trainer.precision=bf16")
    full = run(tmp_path, "trainer.max_steps=4")
    a, b = (
        {
            r["task"]: r["value"]
            for r in rows(path)
            if r["step"] == 4 and r["split"] == "train" and r["metric"] == "loss"
        }
        for path in (low, full)
    )
    assert a != b
    for task in b:
        assert a[task] == pytest.approx(b[task], rel=0.05)
    assert all(v.dtype == torch.float32 for v in weights(low).values() if v.is_floating_point())


def test_channels_last_trains_the_same(tmp_path):
    plain, last = (run(tmp_path, "trainer.max_steps=4", f"trainer.channels_last={on}") for on in ("false", "true"))
    a, b = weights(plain), weights(last)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)
    losses = [
        [r["value"] for r in rows(p) if r["split"] == "train" and r["step"] == 2 and r["metric"] == "loss"]
        for p in (plain, last)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_result_says_how_fast_it_was_and_how_long_it_waited(tmp_path):
    found = result(run(tmp_path, "trainer.max_steps=2"))
    assert 0 <= found["data_wait"] <= 1
    assert found["eval_examples_per_s"] > 0


def test_examples_made_on_the_accelerator_train_and_resume_the_same(tmp_path):
    """Here the accelerator is a CPU; what is random comes from the loader, so a kill changes nothing."""
    options = ["mixture.augment.device=accelerator", "mixture.augment.colour=true", "trainer.max_steps=6"]
    whole = run(tmp_path / "a", *options)
    usual = run(tmp_path / "b", *options[1:])
    first = [
        [r["value"] for r in rows(p) if r["split"] == "train" and r["step"] == 2 and r["metric"] == "loss"]
        for p in (whole, usual)
    ]
    assert first[0] == pytest.approx(first[1], rel=0.02)  # images differ by their rounding to 8 bits

    class AfterThree(StopFlag):
        asked = 0

        @property
        def requested(self) -> bool:  # type: ignore[override]
            self.asked += 1
            return self.asked >= 3

    config = finalize(compose("train", [*TINY, f"output_dir={tmp_path / 'c'}", *options]))
    directory = RunDirectory.claim(config, "train", [])
    assert train(directory, AfterThree()) == 75
    assert train(RunDirectory.open(directory.path), StopFlag()) == 0
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(directory.path)[name]), name


def test_best_follows_the_named_metric(tmp_path):
    path = run(
        tmp_path, "trainer.max_steps=12", "trainer.eval_every=4", "trainer.select=depth/rmse", "optimizer.lr=3e-3"
    )
    seen = {
        r["step"]: r["value"]
        for r in rows(path)
        if r["split"] == "validation" and r["task"] == "depth" and r["metric"] == "rmse"
    }
    assert result(path)["best_step"] == min(seen, key=seen.get)
    assert result(path)["validation"]["depth"]["rmse"] == min(seen.values())


def test_a_subset_of_the_tasks_trains_alone(tmp_path):
    path = run(tmp_path, "trainer.max_steps=2", "tasks=[depth]")
    assert set(result(path)["tasks"]) == {"depth"}


def test_single_task_architecture_shares_nothing(tmp_path):
    path = run(tmp_path, "trainer.max_steps=2", "architecture=single_task", "weighting=pcgrad")
    assert {name.split(".")[1] for name in weights(path) if name.startswith("backbones.")} == {
        "segmentation", "depth", "normals", "edge",
    }  # fmt: skip
