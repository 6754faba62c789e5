"""Run directories and sweeps as the runner writes them, with invented numbers, for tests and the benchmark."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from runner.config.compose import compose
from runner.config.derive import on_tasks
from runner.config.freeze import finalize
from runner.config.signature import signature
from runner.launching.rundir import SCHEMA

TASKS: dict[str, dict[str, tuple[str, float, float]]] = {
    "segmentation": {"loss": ("down", 2.4, 1.1), "miou": ("up", 0.05, 0.41), "pixel_acc": ("up", 0.3, 0.67)},
    "depth": {
        "loss": ("down", 2.2, 0.5),
        "rmse": ("down", 2.6, 0.62),
        "abs_err": ("down", 2.2, 0.5),
        "delta1": ("up", 0.1, 0.78),
    },
    "normals": {
        "loss": ("down", 0.6, 0.17),
        "mean": ("down", 45.0, 24.2),
        "median": ("down", 41.0, 18.5),
        "within_11.25": ("up", 0.05, 0.31),
    },
    "edge": {"loss": ("down", 0.2, 0.07), "pixel_f_best": ("up", 0.2, 0.52), "pixel_f_50": ("up", 0.1, 0.47)},
}
"""Task → metric → (direction, value at the start, value at the end)."""

HEADLINE = {"segmentation": "miou", "depth": "rmse", "normals": "mean", "edge": "pixel_f_best"}
GAIN = {
    "single_task": 0.0, "equal": -0.03, "uncertainty": -0.01, "dwa": -0.035, "gradnorm": -0.02, "pcgrad": -0.005,
    "cagrad": 0.012, "nash_mtl": 0.03, "fairgrad": 0.026, "famo": 0.0, "mgda": -0.05, "imtl": 0.004,
}  # fmt: skip
"""How much better than the single-task runs a method is, as a share."""


@cache
def base_config(*overrides: str) -> str:
    """A frozen configuration, as YAML."""
    return yaml.safe_dump(
        finalize(compose("train", ["+experiment=demo", "tracking=jsonl", *overrides])), sort_keys=False
    )


def make_config(overrides: Iterable[str] = (), **top: Any) -> dict[str, Any]:
    """A configuration: Hydra composes the options, single keys are set in what it gives."""
    pairs = [(word.lstrip("+"), *word.lstrip("+").partition("=")[::2]) for word in overrides]
    options = [word for word, key, _ in pairs if key != "seed" and "." not in key]
    config = yaml.load(base_config(*options), yaml.CSafeLoader)
    for word, key, value in pairs:
        if word not in options:
            *sections, last = key.split(".")
            place = config
            for section in sections:
                place = place[section]
            assert last in place, word
            place[last] = yaml.safe_load(value)
    return config | top


def final_values(
    tasks: Sequence[str], gain: float, rng: np.random.Generator, noise: float = 0.006
) -> dict[str, dict[str, float]]:
    """Task → metric → value of a run that is `gain` better than the numbers above."""
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        luck = rng.normal(0, noise)
        found[task] = {
            metric: end * (1 + (gain + luck) * (1 if better == "up" else -1))
            for metric, (better, _, end) in TASKS[task].items()
        }
    return found


def write_run(
    path: Path,
    config: Mapping[str, Any],
    argv: Sequence[str] = (),
    *,
    status: str = "COMPLETED",
    message: str = "",
    gain: float = 0.0,
    values: dict[str, dict[str, float]] | None = None,
    extra: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    rows: int = 20,
    every: int = 4,
    verb: str = "train",
    tasks: Sequence[str] | None = None,
) -> Path:
    """One run directory.

    Args:
        gain, values: how good it is, or its final metrics. extra: more keys of result.json. info: of run.json.
        rows: log points in metrics.jsonl; 0 writes none. every: log points between two evaluations.
    """
    path.mkdir(parents=True)
    seed = config.get("seed", 0)
    tasks = list(tasks or config.get("tasks") or TASKS)
    rng = np.random.default_rng([seed, int(signature(config), 16)])
    values = final_values(tasks, gain, rng) if values is None else values
    steps = int(config["trainer"]["max_steps"]) if "trainer" in config else 300
    done = status == "COMPLETED"
    attempt: dict[str, Any] = {"started": "2026-01-01T12:00:03Z", "status": status, "host": "elsewhere"}
    attempt |= {"pid": 4711, "from_step": 0}
    if status not in ("RUNNING", "CLAIMED"):
        attempt |= {"ended": "2026-01-01T12:05:00Z", "step": steps} | ({"message": message} if message else {})
    sig = signature(config)
    (path / "config.yaml").write_text(yaml.dump(dict(config), Dumper=yaml.CSafeDumper, sort_keys=False))
    content = {
        "schema": SCHEMA, "status": status, "verb": verb, "name": config.get("name", "demo"), "argv": [verb, *argv],
        "signature": sig, "seed": seed, "created": "2026-01-01T12:00:00Z", "git": {"sha": "0" * 40, "dirty": False},
        "python": "3.11.7", "packages": {"torch": "2.13.0"}, "wandb_id": f"{sig}-abc123",
        "attempts": [] if status == "CLAIMED" else [attempt],
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(content | dict(info or {}), indent=2))
    if rows:
        shown = rows if done else max(1, rows // 2)
        (path / "metrics.jsonl").write_text("".join(_lines(tasks, values, rows, shown, every, steps, rng)))
    if done:
        result = {
            "status": "COMPLETED", "split": "test", "tasks": values, "validation": values,
            "headline": {task: HEADLINE[task] for task in tasks},
            "directions": {t: {m: b for m, (b, _, _) in TASKS[t].items() if m != "loss"} for t in tasks},
            "best_step": steps, "steps": steps, "skipped_steps": 0, "train_s": 0.03 * steps * len(tasks),
            "wall_s": 0.04 * steps * len(tasks) + seed, "examples": 16 * steps, "examples_per_s": 171.25,
            "peak_memory_mb": 460.1 + len(tasks), "parameters": 300000 + 20000 * len(tasks),
            "trainable_parameters": 378402, "processes": 1, "device": "cpu", "signature": sig,
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(result | dict(extra or {}), indent=2))
    return path


def _lines(
    tasks: Sequence[str], values: Mapping[str, Mapping[str, float]], rows: int, shown: int, every: int, steps: int,
    rng: np.random.Generator,
) -> Iterable[str]:  # fmt: skip
    """metrics.jsonl: curves that end at the final values, weights that drift, conflict that comes and goes."""

    def line(step: int, split: str, task: str, metric: str, value: float) -> str:
        row = {"step": step, "attempt": 1, "split": split, "task": task, "metric": metric, "value": value}
        return json.dumps(row) + "\n"

    drift = rng.normal(0, 0.5, len(tasks))
    for i in range(1, shown + 1):
        step, done = round(i * steps / rows), i / rows
        fade = math.exp(-4 * done)
        for k, task in enumerate(tasks):
            _, start, _ = TASKS[task]["loss"]
            loss = values[task]["loss"] + (start - values[task]["loss"]) * fade + rng.normal(0, 0.03 * start)
            yield line(step, "train", task, "loss", loss)
            yield line(step, "train", task, "weight", float(np.exp(drift[k] * done + rng.normal(0, 0.03))))
            yield line(step, "train", task, "grad_norm", float(2 + k + rng.normal(0, 0.2)))
        for a, first in enumerate(tasks):
            for second in tasks[a + 1 :]:
                cosine = float(np.clip(math.sin(len(first) * len(second)) * 0.4 + rng.normal(0, 0.1), -1, 1))
                yield line(step, "train", f"{first}~{second}", "cosine", cosine)
                yield line(step, "train", f"{first}~{second}", "conflict", min(1.0, max(0.0, 0.5 - cosine)))
        yield line(step, "train", "", "lr", 0.003 * (1 - done))
        yield line(step, "train", "", "examples_per_s", 170.0)
        if i % every == 0:
            for task in tasks:
                for metric, (_, start, _) in TASKS[task].items():
                    end = values[task][metric]
                    value = end + (start - end) * fade * (1 + rng.normal(0, 0.05))
                    yield line(step, "validation", task, metric, value)


def write_panel(run: Path, step: int = 300, size: tuple[int, int] = (640, 400)) -> Path:
    """A picture where the runner puts its panels."""
    rng = np.random.default_rng(len(run.name))
    coarse = rng.integers(0, 255, (size[1] // 40, size[0] // 40, 3), dtype=np.uint8)
    path = run / "panels" / f"test-step-{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def write_sweep(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    *,
    baseline_seeds: Sequence[int] = (0, 1, 2),
    fail: Mapping[int, str] | None = None,
    running: Iterable[int] = (),
    absent: Iterable[int] = (),
    panels: bool = False,
    top: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A sweep over `axes` with baselines beside it in `train/`.

    Jobs with a number in `fail`, `running` or `absent` are not done.

    Returns:
        The sweep's directory.
    """
    sweep, jobs, needs = folder / "sweeps" / "demo-1f3a9c2e", [], []
    zero: dict[int, dict[str, dict[str, float]]] = {}
    for seed in baseline_seeds:
        zero[seed] = {}
        for task in TASKS:
            words = [f"tasks=[{task}]", f"seed={seed}"]
            config = on_tasks(make_config([f"seed={seed}"], **dict(top or {})), [task], f"demo/single/{task}")
            name = f"20260101T1200{seed:02}Z-{signature(config)}-{len(needs):04x}"
            run = write_run(folder / "train" / "demo" / name, config, words, **options)
            zero[seed] |= json.loads((run / "result.json").read_text())["tasks"]
            needs.append({"role": "baseline", "tasks": [task], "path": str(run), "signature": signature(config)})
    grid: list[list[str]] = [[]]
    for key, texts in axes.items():
        grid = [[*words, f"{key}={text}"] for words in grid for text in texts]
    for number, words in enumerate(grid):
        config = make_config(words, baseline="auto", **dict(top or {}))
        place = f"jobs/{number:03}-{signature(config)}"
        jobs.append({"number": number, "overrides": words, "signature": signature(config), "directory": place})
        if number in absent:
            continue
        method = next((word.removeprefix("weighting=") for word in words if word.startswith("weighting=")), "equal")
        status = "FAILED" if number in (fail or {}) else "RUNNING" if number in running else "COMPLETED"
        baseline = zero.get(config["seed"])
        run = write_run(
            sweep / place, config, ["+experiment=demo", *words], status=status, message=(fail or {}).get(number, ""),
            gain=GAIN[method] + 0.01 * math.log10(config["optimizer"]["lr"] / 0.003) * -1,
            extra={"baseline": baseline} if baseline else {}, info={"needs": needs} if needs else {}, **options,
        )  # fmt: skip
        if panels and status == "COMPLETED":
            write_panel(run)
    content = {
        "schema": 1, "id": sweep.name, "name": "demo", "created": "2026-01-01T12:00:00Z", "verb": "train",
        "argv": ["train", "-m", "+experiment=demo", *(f"{key}={','.join(texts)}" for key, texts in axes.items())],
        "axes": {key: list(texts) for key, texts in axes.items()}, "fixed": ["+experiment=demo"], "jobs": jobs,
        "needs": [{key: need[key] for key in ("role", "tasks", "signature")} for need in needs],
    }  # fmt: skip
    sweep.mkdir(parents=True, exist_ok=True)
    (sweep / "sweep.json").write_text(json.dumps(content, indent=2))
    return sweep
