"""A merge in the launcher: experts and base from their runs, one merged model, judged as any run is.

Nothing is written before the merged model is whole: a killed merge starts over (its experts are there), one that was
killed while it was evaluated goes on with the merged weights of its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.build import build
from runner.config.schema import MergingConfig, TrainerConfig
from runner.config.signature import weights_part
from runner.errors import EXIT_DONE, EXIT_STOPPED, UserError
from runner.files import read_json, write_json
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.merging.base import DataMerge, Merge, Merged, TaskVectorMerge, refuse
from runner.merging.data import TaskData, load_groups, retained, without_targets
from runner.merging.diagnostics import diagnose
from runner.merging.memory import line, merge_in_memory
from runner.merging.modules import MergedModule, Switch, rebuild
from runner.merging.sources import Models
from runner.tasks.base import Task
from runner.tracking import Tracker
from runner.training.assemble import Parts, assemble, seed_everything
from runner.training.checkpoints import Checkpoints, load_weights
from runner.training.comparison import compare
from runner.training.evaluate import Results, evaluate
from runner.training.processes import Processes
from runner.training.result import clean, peak_memory_mb
from runner.training.start import start_from, weights_file

BODY = "backbone."
"""What is merged begins so; heads stay each expert's own."""
_ORIGIN = "backbone.origin."


class Stopped(Exception):
    """A stop signal came between two pieces of work."""


def merge_run(run: RunDirectory, stop: StopFlag) -> int:
    """Merge, evaluate, write result.json; returns the exit code.

    Raises:
        UserError: the experts are not there, or the strategy does not take them.
    """
    started = time.perf_counter()
    config = run.config()
    trainer, settings = TrainerConfig(**config["trainer"]), MergingConfig(**config["merging"])
    processes = Processes.start(config["launch"], trainer.precision)
    if not processes.main:  # a merge is the work of one process
        return EXIT_DONE
    strategy: Merge = build(config["merge"], where="merge")
    parts = plain_parts(config)
    model = parts.model.to(processes.device)
    needs = run.info().get("needs", [])
    start_from(model, config, needs, parts.inputs)
    base = body(model)
    runs = expert_runs(needs, list(parts.tasks))
    experts = {task: load_expert(model, path, task) for task, path in runs.items()}
    models = Models.in_memory(experts, base)
    refuse(strategy.check(models.names, True))

    tracker = Tracker(run.path, config, run.begin_attempt(0), run.info()["wandb_id"], 0, group=run.info().get("sweep"))
    tracker.message(f"merging {len(experts)} experts of {', '.join(experts)} by {type(strategy).__name__}")
    exit_code = EXIT_DONE

    def check_stop() -> None:
        if stop.requested:
            raise Stopped

    try:
        seed_everything(config["seed"])
        data = task_data(parts, strategy, settings, trainer, config["seed"], processes.device, tracker.notice)
        with torch.no_grad():
            data.reference = {task: data_headline(data, tensors, task) for task, tensors in experts.items()}
        check_stop()
        checkpoints = Checkpoints(run.path / "checkpoints")
        done = checkpoints.newest()
        if done is not None:
            state = read_json(done / "state.json")
            report = state["report"]
            final = rebuild(strategy, model, state["merged"], experts)
            load_weights(final, done / "model.safetensors")
        else:
            began = time.perf_counter()
            merged, report = merge_with(strategy, models, data, settings, check_stop)
            report["merge_s"] = round(time.perf_counter() - began, 3)
            final = realise(merged, strategy, model, models)
            checkpoints.save(
                0,
                model=final,
                ema=None,
                training={},
                state={
                    "step": 0,
                    "report": report,
                    "merged": final.plain() if isinstance(final, MergedModule) else None,
                    "inputs": parts.inputs.learned,
                    "config": weights_part(config),
                },
                best_step=0,
            )
        check_stop()
        finish(
            run, parts, processes, tracker, trainer, settings, data, final, base, models, runs, report,
            check_stop, started,
        )  # fmt: skip
        run.end_attempt("COMPLETED", 0)
    except Stopped:
        exit_code = EXIT_STOPPED
        run.end_attempt("STOPPED", 0, f"stopped by {stop.name}")
        tracker.message(f"stopped by {stop.name}")
    except BaseException:
        exit_code = 1
        raise
    finally:
        tracker.close(exit_code)
    return exit_code


# ---- what is merged ------------------------------------------------------------------------------------------------


def plain_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of a merge run: an adapter is folded into the experts' weights, so the model has none."""
    return assemble({**config, "adapter": {"_target_": None}})


def body(model: nn.Module) -> dict[str, Tensor]:
    """The merged part of a model's state, copied."""
    state = model.state_dict()
    return {n: t.detach().clone() for n, t in state.items() if n.startswith(BODY) and not n.startswith(_ORIGIN)}


def expert_runs(needs: list[Mapping[str, Any]], tasks: list[str]) -> dict[str, Path]:
    """Task → the run of its expert.

    Raises:
        UserError: one is missing.
    """
    found = {task: Path(n["path"]) for n in needs if n["role"] == "expert" and n["path"] for task in n["tasks"]}
    missing = [task for task in tasks if task not in found]
    if missing:
        raise UserError(f"there is no expert of {', '.join(missing)}", "start the run again: it trains what is missing")
    return {task: found[task] for task in tasks}


def load_expert(model: nn.Module, path: Path, task: str) -> dict[str, Tensor]:
    """The merged part of an expert's weights; its head goes into `model`.

    Raises:
        UserError: the weights are not those of this model.
    """
    config = RunDirectory.open(path).config()
    own = assemble(config, must_have_data=False)
    load_weights(_averaged(own.model, config), weights_file(path)[0])
    adapter = build(config.get("adapter"), where="adapter")
    state = adapter.fold(own.model) if adapter is not None else own.model.state_dict()
    heads: Mapping[str, nn.Module] = model.heads  # type: ignore[assignment]
    prefix = f"heads.{task}."
    heads[task].load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    device = next(model.parameters()).device
    wanted = body(model)
    found = {n: t.detach().clone().to(device) for n, t in state.items() if n in wanted}
    if len(found) != len(wanted):
        raise UserError(f"the expert of {task} in {path} is of another model", f"it lacks {len(wanted) - len(found)}")
    return found


def _averaged(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    from torch.optim.swa_utils import AveragedModel

    if not config["trainer"]["ema"]:
        return model
    averaged = AveragedModel(model, use_buffers=True)
    averaged.module = model  # read into the model itself
    return averaged


def task_data(
    parts: Parts,
    strategy: Merge,
    settings: MergingConfig,
    trainer: TrainerConfig,
    seed: int,
    device: torch.device,
    say: Any,
) -> TaskData:
    """The data that the strategy may see, in memory."""
    tasks = list(parts.tasks)

    def load(split: Any, limit: int | None) -> dict[str, Any]:
        sets = parts.mixture.datasets(split)
        return load_groups(sets, tasks, parts.inputs, limit=limit, seed=seed, device=device)

    adapt = load(settings.adapt, settings.adapt_examples) if strategy.needs != "weights" else {}
    return TaskData(
        parts.model,
        parts.tasks,
        {task: without_targets(group) for task, group in adapt.items()},
        adapt if strategy.needs == "labelled" else None,
        load("validation", settings.examples),
        seed=seed,
        split=settings.adapt,
        say=say,
    )


def data_headline(data: TaskData, tensors: Mapping[str, Tensor], task: str) -> float:
    """The headline metric of one expert on its own validation examples."""
    from runner.merging.data import headlines

    data.model.eval()
    return headlines(data.runs(tensors), data.tasks, {task: data.validation[task]}, 200)[task]


# ---- merging -------------------------------------------------------------------------------------------------------


def merge_with(
    strategy: Merge, models: Models, data: TaskData, settings: MergingConfig, check_stop: Any
) -> tuple[Merged, dict[str, Any]]:
    """Run the strategy; where it has a scale, choose it on validation data.

    Returns:
        The result, and what is to be told of it: the curve over the scale, coefficients.
    """
    data.model.eval()
    base = models.base
    assert base is not None
    if isinstance(strategy, DataMerge):
        with torch.enable_grad():
            merged = strategy.fit(models, data)
        return merged, {"adapted_on": data.split, **merged.report}
    if not isinstance(strategy, TaskVectorMerge) or strategy.decoder is not None or not settings.scales:
        return merge_in_memory(strategy, models), {}
    direction = line(strategy, models)
    curve = []
    origin = {name: base.whole(name).float() for name in direction}
    for scale in settings.scales:
        check_stop()
        tensors = {name: torch.add(origin[name], tau, alpha=scale) for name, tau in direction.items()}
        found = data.headlines(data.runs(tensors))
        shares = {t: retained(data.tasks[t], found[t], data.reference[t]) for t in found}
        curve.append({"scale": scale, "normalised": sum(shares.values()) / len(shares), "tasks": found})
    best = max(curve, key=lambda point: point["normalised"])
    tensors = {name: torch.add(origin[name], tau, alpha=best["scale"]) for name, tau in direction.items()}
    return Merged(tensors), {"scale": best["scale"], "curve": curve}


def realise(merged: Merged, strategy: Merge, model: nn.Module, models: Models) -> nn.Module:
    """The result as something that evaluates: the model with merged weights, or a module."""
    if merged.module is not None:
        return merged.module
    if merged.restorers:
        return Switch.of(model, strategy, merged, models)
    own = model.state_dict()
    for name, tensor in merged.tensors.items():
        own[name].copy_(tensor)
    return model


def empty_result(config: Mapping[str, Any], model: nn.Module, checkpoint: Path) -> nn.Module:
    """What the weights of a merge run's checkpoint fit into.

    Args:
        config: the run's. model: its architecture, without an adapter. checkpoint: the folder.
    """
    strategy: Merge = build(config["merge"], where="merge")
    shapes = dict.fromkeys(config["mixture"]["tasks"], body(model))
    return rebuild(strategy, model, read_json(checkpoint / "state.json")["merged"], shapes)


# ---- the result ----------------------------------------------------------------------------------------------------


def finish(
    run: RunDirectory,
    parts: Parts,
    processes: Processes,
    tracker: Tracker,
    trainer: TrainerConfig,
    settings: MergingConfig,
    data: TaskData,
    final: nn.Module,
    base: Mapping[str, Tensor],
    models: Models,
    runs: Mapping[str, Path],
    report: dict[str, Any],
    check_stop: Any,
    started: float,
) -> None:
    """Evaluate merged model and base on the final split, compare with the experts, write and show it all."""
    split = trainer.final_split or "validation"
    config = run.config()

    def on(split: Any, model: nn.Module, panels: int = 0) -> tuple[Results, list[Any]]:
        return evaluate(
            model,
            parts.tasks,
            parts.mixture.datasets(split),
            parts.inputs,
            batch_size=trainer.eval_batch_size or trainer.batch_size,
            device=processes.device,
            num_workers=trainer.num_workers,
            autocast=processes.accelerator.autocast,
            panels=panels,
        )

    validation, _ = on("validation", final)
    check_stop()
    results, panels = on(split, final, trainer.panels) if split != "validation" else (validation, [])
    check_stop()
    collapsed = collapses(final, data)
    for task, share in collapsed.items():
        tracker.notice(
            f"'{task}': {share:.0%} of the merged model's predictions are one class, its labels are not. Entropy "
            "minimisation and large steps end so: lower merge.lr or merge.steps"
        )
    size = sum(t.numel() * t.element_size() for t in final.state_dict().values())
    count = sum(p.numel() for p in final.parameters())
    merged_state = None if isinstance(final, MergedModule) else body(final)
    own = parts.model.state_dict()
    for name, tensor in base.items():
        own[name].copy_(tensor)
    at_base, _ = on(split, parts.model)
    check_stop()
    experts = {task: read_json(path / "result.json")["tasks"][task] for task, path in runs.items()}
    summary = compare_with_experts(parts.tasks, results, at_base, experts)
    if summary["gap"] is not None and summary["gap"] < 0.06:
        tracker.notice(
            f"base and experts are only {summary['gap']:.3f} apart: too little for strategies to differ; train the "
            "experts for longer or start from a base that has seen less"
        )
    diagnostics = diagnose(run.path, settings, data, models, merged_state, report, check_stop)
    tracker.pictures(0, run.path / "diagnostics")
    tracker.scalars(0, "validation", validation)
    tracker.scalars(0, split, results)
    tracker.panels(0, split, panels)
    result = {
        "status": "COMPLETED",
        "split": split,
        "tasks": clean(results),
        "validation": clean(validation),
        "headline": {name: task.headline for name, task in parts.tasks.items()},
        "directions": {name: dict(task.directions) for name, task in parts.tasks.items()},
        "experts": experts,
        "base": clean(at_base),
        "merge": {
            "strategy": config["merge"]["_target_"].rpartition(".")[2],
            "experts": {task: str(path) for task, path in runs.items()},
            "bytes": size,
            "expert_bytes": sum(t.numel() * t.element_size() for t in base.values()),
            **report,
            **summary,
            "collapsed": collapsed,
        },
        "diagnostics": diagnostics,
        "best_step": 0,
        "steps": 0,
        "wall_s": round(time.perf_counter() - started, 3),
        "peak_memory_mb": round(peak_memory_mb(processes.device), 1),
        "parameters": count,
        "processes": 1,
        "device": processes.device.type,
        "signature": run.info()["signature"],
    }
    result |= compare(config, run.info().get("needs", []), results, parts.tasks, split)
    write_json(run.path / "result.json", result)
    tracker.table(result, parts.tasks)
    for text in summary_lines(result, parts.tasks):
        tracker.message(text)


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


def summary_lines(result: Mapping[str, Any], tasks: Mapping[str, Task]) -> list[str]:
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
    if "scale" in merge:
        lines.append(f"merge.scale={merge['scale']:g}, chosen on validation data among {len(merge['curve'])}")
    return lines
