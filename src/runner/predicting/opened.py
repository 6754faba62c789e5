"""A run's model, ready to predict, and what it needs to read inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.config.schema import TrainerConfig
from runner.errors import Problem, UserError
from runner.launching.rundir import RunDirectory
from runner.training.assemble import Parts
from runner.training.checkpoints import Checkpoints
from runner.training.kept import kept_inputs
from runner.training.trained import load_trained


@dataclass
class Opened:
    """A trained run.

    Attributes:
        parts: mixture, inputs and tasks. model: what evaluation would run, on its device and in evaluation mode.
        settings: of the trainer.
    """

    parts: Parts
    model: nn.Module
    device: torch.device
    settings: TrainerConfig

    @classmethod
    def open(cls, run: RunDirectory, checkpoint: str, device: str, data_root: str | None = None) -> Opened:
        """A run's model with a checkpoint's weights; the run's data need not be there.

        Raises:
            UserError: there is no such checkpoint or device, or the run kept too little to do without its data.
        """
        config = run.config()
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU here", "--device cpu", "runner doctor")
        place = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
        found = Checkpoints(run.path / "checkpoints").find(checkpoint)
        kept = kept_inputs(run.path)
        try:
            parts, model = load_trained(config, found, place, data_root, kept, must_have_data=False)
        except UserError as error:
            if kept is not None or config["mixture"].get("sources") is None:
                raise
            what = f"'{run.path}' has no inputs.json: it was made before runs kept what they read with"
            why = "so a vocabulary or statistics of columns come from its training data again: --data-root DIR"
            raise UserError([Problem(what, why), *error.problems]) from error
        if kept is not None:
            classes = kept["classes"]
        else:  # without names and data, classes are numbers
            classes = {} if parts.mixture.check() else parts.mixture.class_names()
        for name, names in classes.items():
            task: Any = parts.tasks.get(name)
            if config["mixture"]["tasks"].get(name, {}).get("class_names") is None and task is not None:
                task.class_names = list(names)
        return cls(parts, model.eval(), place, TrainerConfig(**config["trainer"]))

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as in the run's evaluation; on a CPU, which has no fp16, in full."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.settings.precision)
        if kind is None or (kind == torch.float16 and self.device.type == "cpu"):
            return nullcontext()
        return torch.autocast(self.device.type, kind)
