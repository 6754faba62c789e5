"""Reading an exported folder back: the whole model, from its own files and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.config import plugins as registry
from runner.config.build import build
from runner.errors import UserError
from runner.exporting.trunks import Trunk, read_trunk
from runner.files import read_json
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.training.assemble import finish_model
from runner.types import Group

WHERE = "runner"
"""The folder of runner's own files in an exported folder."""


@dataclass
class Exported:
    """A model read back.

    Attributes:
        model: in evaluation mode, on the CPU.
        tasks: name → task: what the predictions mean.
        inputs: what the model reads.
        config: the run's frozen configuration.
    """

    model: nn.Module
    tasks: dict[str, Task]
    inputs: InputSpec
    config: dict[str, Any]

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Raw predictions by task name, (B, C, H, W), (B, C) or (B, T, C).

        Args:
            inputs: as `runner.specs.InputSpec` says: "pixels" (B, 3, H, W) in [0, 1] for images.
            tasks: some of the tasks; None for all.
        """
        device = next(self.model.parameters()).device
        return self.model(Group("input", dict(inputs)).to(device), list(tasks or self.tasks))


def load_folder(folder: Path, plugins: Sequence[str] = ()) -> Exported:
    """See `runner.exporting.load`."""
    for name in ("export.json", "config.yaml", "heads.safetensors"):
        if not (folder / WHERE / name).is_file():
            raise UserError(
                f"'{folder}' is not an exported run: it has no {WHERE}/{name}", "", "runner export RUN --to DIR"
            )
    problems = registry.register(list(plugins))
    if problems:
        raise UserError(problems)
    about = read_json(folder / WHERE / "export.json")
    config = yaml.safe_load((folder / WHERE / "config.yaml").read_text(encoding="utf-8"))
    inputs = InputSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["inputs"].items()})
    trunks = [Trunk(**trunk) for trunk in about["backbones"]]
    tasks = {
        name: build(task, name, where=f"mixture.tasks.{name}") for name, task in config["mixture"]["tasks"].items()
    }
    backbone = dict(config["backbone"])
    if backbone.get("pretrained"):  # the checkpoint that the run began with need not be there any more
        held = next((t.folder for t in trunks if t.folder), None)
        backbone["pretrained"] = None if held is None else str(folder / held)
        if held is None and backbone.get("size", "") is None:  # the checkpoint's, which the run began with
            backbone["size"] = next(trunk.size for trunk in trunks)

    def make_backbone() -> Backbone:
        return build(backbone, inputs, where="backbone")

    model = build(config["architecture"], make_backbone, tasks, where="architecture")
    finish_model(model, config)
    state = read_state(folder, trunks, model)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(
            f"the weights in '{folder}' do not fit its configuration: {len(missing)} tensors are missing, "
            f"{len(unexpected)} have no place, first {[*missing, *unexpected][0]}"
        )
    return Exported(model.eval(), tasks, inputs, config)


def read_state(folder: Path, trunks: Sequence[Trunk], model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of an exported folder by its name in the run's model."""
    state: dict[str, Tensor] = {}
    for name in ("heads", "rest"):
        path = folder / WHERE / f"{name}.safetensors"
        if path.is_file():
            state |= safetensors.torch.load_file(path)
    own = set(model.state_dict())
    for trunk in trunks:
        if trunk.folder is not None:
            loaded = read_trunk(folder, trunk)
            state |= {n: t for k, t in loaded.items() if (n := f"{trunk.name}.trunk.{k}") in own}
    return state
