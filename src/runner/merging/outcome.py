"""What a merge in the launcher came to: evaluated, compared with experts and base, written to result.json, shown."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.config.schema import MergingConfig, TrainerConfig
from runner.files import read_json, write_json
from runner.launching.rundir import RunDirectory
from runner.merging.data import TaskData, retained
from runner.merging.diagnostics import diagnose
from runner.merging.loading import Inputs
from runner.merging.modules import MergedModule, body, stored_bytes
from runner.tasks.base import Task
from runner.tracking import Tracker
from runner.training.assemble import Parts
from runner.training.comparison import compare
from runner.training.evaluate import Results, evaluate
from runner.training.processes import Processes
from runner.training.result import clean, peak_memory_mb

SMALL_GAP = 0.06
"""Base and experts that are closer than this leave nothing to tell strategies apart by."""


@dataclass(frozen=True)
class Judge:
    """Everything around a merge run that its evaluation needs."""

    run: RunDirectory
    parts: Parts
    processes: Processes
    tracker: Tracker
    trainer: TrainerConfig
    settings: MergingConfig
    inputs: Inputs
    data: TaskData
    check_stop: Callable[[], None]

    @property
    def split(self) -> Any:
        """The split of the result."""
        return self.trainer.final_split or "validation"

    def on(self, split: Any, model: nn.Module, panels: int = 0) -> tuple[Results, list[Any]]:
        """Metrics and panels of a model on a split."""
        self.check_stop()
        return evaluate(
            model,
            self.parts.tasks,
            self.parts.mixture.datasets(split),
            self.parts.inputs,
            batch_size=self.trainer.eval_batch_size or self.trainer.batch_size,
            device=self.processes.device,
            num_workers=self.trainer.num_workers,
            autocast=self.processes.accelerator.autocast,
            panels=panels,
        )

    def finish(self, final: nn.Module, report: Mapping[str, Any], started: float) -> None:
        """Evaluate the merged model on the final split, compare it with base and experts, write and show it all.

        Args:
            final: the merged model. report: what merging it had to tell. started: `perf_counter` at the beginning.
        """
        tasks, tracker, split = self.parts.tasks, self.tracker, self.split
        validation, _ = self.on("validation", final)
        results, panels = self.on(split, final, self.trainer.panels) if split != "validation" else (validation, [])
        collapsed = collapses(final, self.data)
        for task, share in collapsed.items():
            tracker.notice(
                f"'{task}': {share:.0%} of the merged model's predictions are one class, its labels are not. Entropy "
                "minimisation and large steps end so: lower merge.lr or merge.steps"
            )
        size, count = stored_bytes(final), sum(p.numel() for p in final.parameters())
        merged_state = None if isinstance(final, MergedModule) else body(final)
        at_base = self.at_base()
        experts = {}
        for expert, own in self.inputs.tasks.items():
            found = read_json(self.inputs.runs[expert] / "result.json")["tasks"]
            experts |= {task: found[task] for task in own}
        experts = {task: experts[task] for task in tasks}
        summary = compare_with_experts(tasks, results, at_base, experts)
        if summary["gap"] is not None and summary["gap"] < SMALL_GAP:
            tracker.notice(
                f"base and experts are only {summary['gap']:.3f} apart: too little for strategies to differ; train "
                "the experts for longer or start from a base that has seen less"
            )
        diagnostics = diagnose(
            self.run.path, self.settings, self.data, self.inputs, merged_state, report, self.check_stop
        )
        tracker.pictures(0, self.run.path / "diagnostics")
        tracker.scalars(0, "validation", validation)
        whole = sum(t.numel() * t.element_size() for t in self.parts.model.state_dict().values())
        judged = {name: summary[name] for name in ("normalised", "absolute", "gap_recovered")}
        known = {name: value for name, value in judged.items() if value is not None}
        tracker.scalars(0, split, results | {"": {**known, "stored": size / whole}})
        tracker.panels(0, split, panels)
        config, info = self.run.config(), self.run.info()
        result = {
            "status": "COMPLETED",
            "split": split,
            "tasks": clean(results),
            "validation": clean(validation),
            "headline": {name: task.headline for name, task in tasks.items()},
            "directions": {name: dict(task.directions) for name, task in tasks.items()},
            "experts": experts,
            "base": clean(at_base),
            "merge": {
                "strategy": config["merge"]["_target_"].rpartition(".")[2],
                "experts": {expert: str(path) for expert, path in self.inputs.runs.items()},
                "bytes": size,
                "model_bytes": whole,
                "expert_bytes": sum(t.numel() * t.element_size() for t in self.inputs.base.values()),
                **report,
                **summary,
                "collapsed": collapsed,
            },
            "diagnostics": diagnostics,
            "best_step": 0,
            "steps": 0,
            "wall_s": round(time.perf_counter() - started, 3),
            "peak_memory_mb": round(peak_memory_mb(self.processes.device), 1),
            "parameters": count,
            "processes": 1,
            "device": self.processes.device.type,
            "signature": info["signature"],
        }
        result |= compare(config, info.get("needs", []), results, tasks, split)
        write_json(self.run.path / "result.json", result)
        tracker.table(result, tasks)
        for text in summary_lines(result):
            tracker.message(text)

    def at_base(self) -> Results:
        """Metrics of the base with the experts' heads on the final split.

        They are the same for every strategy, so the first merge of these experts leaves them beside the locks of what
        runs need, and the others read them.
        """
        names = sorted(path.name for path in self.inputs.runs.values())
        key = hashlib.sha256("\n".join([*names, self.split]).encode()).hexdigest()[:16]
        file = Path(self.run.config()["output_dir"]) / ".needs" / f"base-{key}.json"
        if file.is_file():
            return _floats(read_json(file))
        own = self.parts.model.state_dict()
        for name, tensor in self.inputs.base.items():
            own[name].copy_(tensor)
        results, _ = self.on(self.split, self.parts.model)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, clean(results))
        return results


def _floats(results: Mapping[str, Mapping[str, float | None]]) -> Results:
    return {t: {n: math.nan if v is None else float(v) for n, v in found.items()} for t, found in results.items()}


def compare_with_experts(
    tasks: Mapping[str, Task], merged: Results, base: Results, experts: Mapping[str, Mapping[str, float | None]]
) -> dict[str, Any]:
    """How much of the experts is left: per task and in the mean, by headline metrics.

    Returns:
        `retained` (task → merged/expert), `normalised` (its mean), `absolute` (mean headline, where all go up), `gap`
        (expert - base, mean, in the direction of better) and `gap_recovered` ((merged - base) / gap).
    """
    signs = {t: 1.0 if task.directions.get(task.headline, "down") == "up" else -1.0 for t, task in tasks.items()}
    m = {t: merged[t][task.headline] for t, task in tasks.items()}
    b = {t: base[t][task.headline] for t, task in tasks.items()}
    e = {t: float(experts[t][task.headline] or 0.0) for t, task in tasks.items()}
    count = len(tasks)
    shares = {t: retained(task, m[t], e[t]) for t, task in tasks.items()}
    same = len({task.headline for task in tasks.values()}) == 1  # metrics of different units have no mean
    gap = sum(signs[t] * (e[t] - b[t]) for t in tasks) / count
    won = sum(signs[t] * (m[t] - b[t]) for t in tasks) / count
    return {
        "retained": shares,
        "normalised": sum(shares.values()) / count,
        "absolute": sum(m.values()) / count if same else None,
        "expert_mean": sum(e.values()) / count if same else None,
        "base_mean": sum(b.values()) / count if same else None,
        "gap": gap if same else None,
        "gap_recovered": won / gap if same and abs(gap) > 1e-9 else None,
    }


@torch.no_grad()
def collapses(final: nn.Module, data: TaskData, factor: float = 2.0) -> dict[str, float]:
    """Tasks whose most frequent predicted class takes far more of the validation examples than it has labels."""
    found = {}
    final.eval()
    for name, group in data.validation.items():
        target = group.targets[name]
        if target.dim() != 1 or target.is_floating_point():
            continue
        logits = final(group, [name])[name]
        if logits.dim() != 2 or logits.shape[1] < 2:
            continue
        share = logits.argmax(1).bincount(minlength=logits.shape[1]).max().item() / len(group)
        labels = target[target >= 0].bincount(minlength=logits.shape[1]).max().item() / len(group)
        if share > max(factor * labels, 2 / logits.shape[1]) and share > 0.3:
            found[name] = round(share, 4)
    return found


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """What a person reads below the table."""
    merge = result["merge"]
    shares = "  ".join(f"{task} {share:.1%}" for task, share in merge["retained"].items())
    lines = [f"of the experts: {merge['normalised']:.1%}   ({shares})"]
    if merge["absolute"] is not None:
        recovered = "" if merge["gap_recovered"] is None else f", {merge['gap_recovered']:.0%} of the gap recovered"
        lines.append(
            f"mean {merge['absolute']:.4f} between base {merge['base_mean']:.4f} and experts "
            f"{merge['expert_mean']:.4f}{recovered}"
        )
    if "curve" in merge:
        lines.append(f"merge.scale={merge['scale']:g}, chosen on validation data among {len(merge['curve'])}")
    return lines
