"""A merge in the launcher: experts and base from their runs, one merged model, judged as any run is.

Nothing is written before the merged model is whole: a killed merge starts over (its experts are there), one that was
killed while it was evaluated goes on with the merged weights of its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from runner.config.build import build
from runner.config.derive import expert_groups
from runner.config.schema import MergingConfig, TrainerConfig
from runner.config.signature import weights_part
from runner.errors import EXIT_DONE, EXIT_STOPPED
from runner.files import read_json
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.merging.base import DataMerge, Merge, refuse
from runner.merging.loading import load_inputs, plain_parts, task_data
from runner.merging.modules import MergedModule, body, realise, rebuild
from runner.merging.outcome import Judge
from runner.merging.scaling import merge_with
from runner.tracking import Tracker
from runner.training.assemble import seed_everything
from runner.training.checkpoints import Checkpoints, load_weights
from runner.training.kept import keep_inputs
from runner.training.processes import Processes
from runner.training.start import start_from


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
    inputs = load_inputs(model, config, needs)
    models = inputs.models(strategy)
    refuse(strategy.check(models.names, True))

    tracker = Tracker(run.path, config, run.begin_attempt(0), run.info()["wandb_id"], 0, group=run.info().get("sweep"))
    count, names = len(inputs.experts), ", ".join(inputs.experts)
    tracker.message(f"merging {count} experts of {names} by {type(strategy).__name__}")
    keep_inputs(run.path, parts.mixture, parts.inputs)
    exit_code = EXIT_DONE

    def check_stop() -> None:
        if stop.requested:
            raise Stopped

    try:
        seed_everything(config["seed"])
        data = task_data(parts, strategy, settings, inputs, config["seed"], processes.device, tracker.notice)
        check_stop()
        checkpoints = Checkpoints(run.path / "checkpoints")
        done = checkpoints.newest()
        if done is not None:
            state = read_json(done / "state.json")
            report = state["report"]
            final = rebuild(strategy, model, state["merged"], models_shapes(strategy, config, model))
            load_weights(final, done / "model.safetensors")
        else:
            began = time.perf_counter()
            merged, report = merge_with(strategy, models, data, settings, check_stop)
            report["merge_s"] = round(time.perf_counter() - began, 3)
            final = realise(merged, strategy, model, models, None if isinstance(strategy, DataMerge) else inputs.owner)
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
        Judge(run, parts, processes, tracker, trainer, settings, inputs, data, check_stop).finish(
            final, report, started
        )
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


def models_shapes(strategy: Merge, config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Expert, as the strategy is given them → tensors of the shapes of its weights; see `Inputs.models`."""
    tasks = config["mixture"]["tasks"]
    return dict.fromkeys(tasks if isinstance(strategy, DataMerge) else expert_groups(config), body(model))


def empty_result(config: Mapping[str, Any], model: nn.Module, checkpoint: Path) -> nn.Module:
    """What the weights of a merge run's checkpoint fit into.

    Args:
        config: the run's. model: its architecture, without an adapter. checkpoint: the folder.
    """
    strategy: Merge = build(config["merge"], where="merge")
    plain = read_json(checkpoint / "state.json")["merged"]
    return rebuild(strategy, model, plain, models_shapes(strategy, config, model))
