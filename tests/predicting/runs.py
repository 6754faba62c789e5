"""Tiny trained runs of every kind, and what `runner predict` says of their own test splits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.predicting import worker
from runner.predicting.request import Request
from runner.training.loop import train

SMALL = [
    "trainer.max_steps=3", "trainer.epochs=null", "trainer.batch_size=4", "trainer.eval_batch_size=3",
    "trainer.num_workers=0", "trainer.panels=0", "trainer.eval_every=null", "trainer.checkpoint_every=null",
    "tracking=jsonl", "tracking.plots=false", "tracking.console=quiet", "launch.threads=1", "launch.device=cpu",
    "optimizer.lr=0.02", "scheduler=constant",
]  # fmt: skip


def trained(place: Path, option: str, mixture: dict[str, Any], *overrides: str) -> RunDirectory:
    """A run of a few steps on a mixture whose keys are given; its data is below `place`."""
    composed = compose("train", [f"mixture={option}", *SMALL, f"output_dir={place / 'outputs'}", *overrides])
    config = finalize(composed, data=False)
    config["mixture"], config["data_root"] = config["mixture"] | mixture, str(place)
    run = RunDirectory.claim(config, "train", [])
    assert train(run, StopFlag()) == 0
    return run


def predict(run: RunDirectory, to: Path, expect: int = 0, **given: Any) -> list[dict[str, Any]]:
    """The rows that the process writes."""
    assert worker.main(Request(run=str(run.path), to=str(to), device="cpu", **given)) == expect
    return rows(to)


def rows(folder: Path) -> list[dict[str, Any]]:
    if (folder / "predictions.jsonl").exists():
        return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def result(run: RunDirectory, task: str) -> dict[str, float]:
    found = run.result()
    assert found is not None
    return found["tasks"][task]


def hide_data(run: RunDirectory, place: Path) -> None:
    """Let a run look for its data where nothing is."""
    config = run.config() | {"data_root": str(place / "gone")}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
