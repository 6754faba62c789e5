"""`runner eval`: a trained run's checkpoint on one split."""

from __future__ import annotations

from pathlib import Path

from runner.config.schema import TrainerConfig
from runner.errors import EXIT_DONE
from runner.files import write_json
from runner.launching.rundir import RunDirectory
from runner.tracking import Tracker
from runner.training.checkpoints import Checkpoints
from runner.training.evaluate import evaluate_parts
from runner.training.processes import Processes
from runner.training.result import clean
from runner.training.trained import load_trained


def evaluate_run(run: RunDirectory) -> int:
    """Evaluate `config["run"]`'s checkpoint on `config["split"]`; writes result.json in `run`'s own directory.

    Raises:
        UserError: the trained run has no such checkpoint, or its data is not there.
    """
    request = run.config()
    trained = RunDirectory.open(Path(request["run"]))
    config = trained.config()
    settings = TrainerConfig(**config["trainer"])
    checkpoint = Checkpoints(trained.path / "checkpoints").find(str(request["checkpoint"]))
    processes = Processes.start(request["launch"], settings.precision)
    merged = bool((config.get("merge") or {}).get("_target_"))
    parts, model = load_trained(config, checkpoint, processes.device, request["data_root"])
    tracker = (
        Tracker(run.path, config, run.begin_attempt(0), run.info()["wandb_id"], 0, verb="eval")
        if processes.main
        else None
    )
    step = int(checkpoint.name.removeprefix("step-"))
    asked = {key: request[key] for key in ("num_workers", "panels")}
    if request["batch_size"]:
        asked["batch_size"] = request["batch_size"]
    results, panels = evaluate_parts(
        model, parts.mixture.datasets(request["split"]), parts, processes, settings, **asked
    )
    if tracker is not None:
        tracker.scalars(step, request["split"], results)
        tracker.panels(step, request["split"], panels)
        result = {
            "status": "COMPLETED",
            "split": request["split"],
            "tasks": clean(results),
            "headline": {name: task.headline for name, task in parts.tasks.items()},
            "directions": {name: dict(task.directions) for name, task in parts.tasks.items()},
            "run": str(trained.path),
            "checkpoint": checkpoint.name,
            "parameters": sum(p.numel() for p in (model if merged else parts.model).parameters()),
            "signature": trained.info()["signature"],
        }
        write_json(run.path / "result.json", result)
        tracker.table(result, parts.tasks)
        tracker.close(EXIT_DONE)
        run.end_attempt("COMPLETED", step)
    processes.end(together=True)
    return EXIT_DONE
