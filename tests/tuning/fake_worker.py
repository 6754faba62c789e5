"""Stands in for `runner.launching.worker` where a test is about the search: no torch, milliseconds.

The numbers are functions of the configuration, with x = log10(optimizer.lr):

    depth/rmse (↓)         1 + (x + 3)², reached from 4 above it over three evaluations
    segmentation/miou (↑)  0.5 - 0.05 x: the larger the learning rate, the worse

`trainer.clip_norm` decides how it goes: 1 fails, 2 waits for a stop signal after the first evaluation until the file
`go` lies beside the jobs, 3 has an undefined rmse. Other values and null just run.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from pathlib import Path

from runner.files import write_json
from runner.launching.rundir import RunDirectory
from runner.launching.worker import _lock, _stop_with_parent

STEPS = (4, 8, 12)


def rows(run: Path, step: int, metrics: dict) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        for task, values in metrics.items():
            for metric, value in values.items():
                row = {"step": step, "attempt": 1, "split": "validation", "task": task, "metric": metric}
                file.write(json.dumps(row | {"value": value}) + "\n")


def main(path: Path) -> int:
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda n, _: stopped.append(n))
    if not _stop_with_parent():
        return 75
    run = RunDirectory.open(path)
    lock = _lock(path)
    if run.info()["status"] == "COMPLETED":
        return 0
    config = run.config()
    at = path / "checkpoint"
    begin = int(at.read_text()) if at.exists() else 0
    run.begin_attempt(begin)
    with open(path.parent / "started", "a") as file:
        file.write(f"{path.name} {begin}\n")
    how = config["trainer"]["clip_norm"]
    x = math.log10(config["optimizer"]["lr"])
    assert config["trainer"]["final_split"] == "validation" and config["baseline"] is None
    if how == 1:
        run.end_attempt("FAILED", message="the loss is not finite")
        return 1
    metrics: dict = {}
    for step in STEPS:
        metrics = {
            "depth": {"rmse": 1 + (x + 3) ** 2 + 4 * (1 - step / STEPS[-1]), "loss": 1.0},
            "segmentation": {"miou": 0.5 - 0.05 * x, "loss": 1.0},
        }
        if step <= begin:
            continue
        rows(path, step, metrics)
        at.write_text(str(step))
        deadline = time.monotonic() + (20 if how == 2 else 0.15 if how == 4 else 0.0)
        while not stopped and time.monotonic() < deadline and not (how == 2 and (path.parent / "go").exists()):
            time.sleep(0.005)
        if stopped:
            run.end_attempt("STOPPED", step, "stopped by SIGTERM")
            return 75
    if how == 3:
        metrics["depth"]["rmse"] = None
    result = {
        "status": "COMPLETED",
        "split": "validation",
        "tasks": metrics,
        "validation": metrics,
        "headline": {"depth": "rmse", "segmentation": "miou"},
        "directions": {"depth": {"rmse": "down"}, "segmentation": {"miou": "up"}},
    }
    write_json(path / "result.json", result)
    run.end_attempt("COMPLETED", STEPS[-1])
    lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
