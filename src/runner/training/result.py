"""result.json: what a run found, and what it cost."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from runner.config.schema import TrainerConfig
from runner.files import write_json
from runner.launching.rundir import RunDirectory
from runner.tracking import Tracker
from runner.training.assemble import Parts, probe_group
from runner.training.comparison import compare
from runner.training.cost import forward_cost
from runner.training.evaluate import Results, evaluate_parts
from runner.training.processes import Processes
from runner.training.selection import Selection
from runner.weighting.base import MODES, Weighting


def write_result(
    run: RunDirectory,
    processes: Processes,
    parts: Parts,
    model: nn.Module,
    settings: TrainerConfig,
    selection: Selection,
    tracker: Tracker | None,
    *,
    weighting: Weighting,
    steps: int,
    skipped: int,
    examples: int,
    train_s: float,
    waited_s: float,
    wall_s: float,
) -> dict[str, Any]:
    """Evaluate the best weights on `trainer.final_split`, write result.json, show the table.

    The validation numbers are those of the evaluation that chose the weights.

    This is the only place where a training run touches the test split, after everything was chosen.
    """
    split = settings.final_split or "validation"
    results = selection.best_results
    rate = None
    if split == "test":
        began = time.perf_counter()
        results, panels = evaluate_parts(model, parts.mixture.datasets(split), parts, processes, settings)
        rate = sum(len(d) for d in parts.mixture.datasets(split).values()) / (time.perf_counter() - began)
        if tracker is not None:
            tracker.scalars(steps, split, results)
            tracker.panels(steps, split, panels)
    studied = _study(model, parts, settings, processes)
    memory = peak_memory_mb(processes.device)
    result = {
        "status": "COMPLETED",
        "split": split,
        "tasks": clean(results),
        "validation": clean(selection.best_results),
        "headline": {name: task.headline for name, task in parts.tasks.items()},
        "directions": {name: dict(task.directions) for name, task in parts.tasks.items()},
        "best_step": selection.best_step,
        "steps": steps,
        "skipped_steps": skipped,
        "train_s": round(train_s, 3),
        "wall_s": round(wall_s, 3),
        "examples": examples,
        "examples_per_s": round(examples / train_s, 2) if train_s else None,
        "data_wait": round(waited_s / train_s, 4) if train_s else None,  # share of train_s
        "eval_examples_per_s": round(rate, 2) if rate else None,
        "peak_memory_mb": round(memory, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "processes": processes.count,
        "device": processes.device.type,
        "signature": run.info()["signature"],
        "approximations": approximations(weighting),
    }
    if run.config().get("reference"):
        result["reference"] = run.config()["reference"]
    result |= studied
    result |= compare(run.config(), run.info().get("needs", []), results, parts.tasks, split)
    if tracker is not None:
        write_json(run.path / "result.json", result)
        tracker.table(result, parts.tasks)
    return result


def _study(model: nn.Module, parts: Parts, settings: TrainerConfig, processes: Processes) -> dict[str, Any]:
    """What the architecture itself finds out about its best weights, on the validation split."""
    plain: Any = model.module if isinstance(model, AveragedModel) else model

    def measure() -> Results:
        return evaluate_parts(plain, parts.mixture.datasets("validation"), parts, processes, settings, panels=0)[0]

    probe = probe_group(parts.inputs).to(processes.device)
    return plain.study(measure, lambda tasks: forward_cost(plain, probe, tasks).flops)


def approximations(weighting: Weighting) -> list[str]:
    """What in a run is not computed as its method says: a reader of the result should know."""
    return [f"weighting.mode=representation: {MODES['representation']}"] if weighting.mode == "representation" else []


def clean(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Strict JSON has no NaN: a metric without a value is null."""
    return {
        task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for task, metrics in results.items()
    }


def peak_memory_mb(device: torch.device) -> float:
    """Peak of this process: allocated on the GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
