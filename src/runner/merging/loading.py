"""What a merge in the launcher works on: base and experts from their runs, and the data that it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from runner.config.build import build
from runner.config.derive import expert_groups
from runner.config.schema import MergingConfig
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.merging.base import DataMerge, Merge
from runner.merging.data import TaskData, headlines, load_groups, without_targets
from runner.merging.modules import body, is_body
from runner.merging.sources import Models
from runner.training.assemble import Parts, assemble
from runner.training.checkpoints import load_weights
from runner.training.start import weights_file


@dataclass(frozen=True)
class Inputs:
    """Base and experts in memory; the model they belong to has every expert's heads.

    Attributes:
        base: the merged part of the base. experts: expert → the same of its weights. runs: expert → its run.
        tasks: expert → the tasks it was tuned on, usually one of the same name.
    """

    base: Mapping[str, Tensor]
    experts: Mapping[str, Mapping[str, Tensor]]
    runs: Mapping[str, Path]
    tasks: Mapping[str, tuple[str, ...]]

    @property
    def owner(self) -> dict[str, str]:
        """Task → its expert."""
        return {task: expert for expert, tasks in self.tasks.items() for task in tasks}

    def models(self, strategy: Merge) -> Models:
        """What a strategy is given: the experts, each once.

        One that looks at data pairs every task with an expert, so that an expert of several tasks is there under the
        name of each; the statistics of its tasks then add up, as those of all their examples would.
        """
        if isinstance(strategy, DataMerge):
            return Models.in_memory({task: self.experts[expert] for task, expert in self.owner.items()}, self.base)
        return Models.in_memory(self.experts, self.base)


def plain_parts(config: Mapping[str, Any]) -> Parts:
    """The parts of a merge run: an adapter is folded into the experts' weights, so the model has none."""
    return assemble({**config, "adapter": {"_target_": None}})


def load_inputs(model: nn.Module, config: Mapping[str, Any], needs: list[Mapping[str, Any]]) -> Inputs:
    """Base and experts of a run; the experts' heads go into `model`, whose body is that of the base.

    Raises:
        UserError: an expert is missing, or is of another model.
    """
    groups = expert_groups(config)
    runs = expert_runs(needs, [task for tasks in groups.values() for task in tasks])
    paths = {expert: runs[tasks[0]] for expert, tasks in groups.items()}
    base = body(model)
    experts = {expert: load_expert(model, path, groups[expert]) for expert, path in paths.items()}
    return Inputs(base, experts, paths, groups)


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


def load_expert(model: nn.Module, path: Path, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """The merged part of an expert's weights; its heads go into `model`.

    Raises:
        UserError: the weights are not those of this model.
    """
    state = expert_state(path)
    heads: Mapping[str, nn.Module] = model.heads  # type: ignore[assignment]
    wanted = {name: tensor for name, tensor in model.state_dict().items() if is_body(name)}
    wanted |= {f"heads.{task}.{name}": t for task in tasks for name, t in heads[task].state_dict().items()}
    wrong = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
    if wrong:
        raise UserError(
            f"the expert of {', '.join(tasks)} in {path} is of another model",
            f"{len(wrong)} of {len(wanted)} tensors are missing or of another shape, first {wrong[0]}",
        )
    for task in tasks:
        prefix = f"heads.{task}."
        heads[task].load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    device = next(model.parameters()).device
    return {name: state[name].detach().clone().to(device) for name in wanted if is_body(name)}


def expert_state(path: Path) -> dict[str, Tensor]:
    """The weights that a run was judged by, under the names of a model without an adapter."""
    config = RunDirectory.open(path).config()
    files = weights_file(path)
    adapter = build(config.get("adapter"), where="adapter")
    if adapter is None:
        stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
        return {n.removeprefix("module."): t for n, t in stored.items()} if config["trainer"]["ema"] else stored
    own = assemble(config, must_have_data=False)
    load_weights(_averaged(own.model, config), files[0])
    return dict(adapter.fold(own.model))


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
    inputs: Inputs,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> TaskData:
    """The data that the strategy may see, in memory, and how good each expert is on what chooses."""
    tasks = list(parts.tasks)

    def load(split: Any, limit: int | None) -> dict[str, Any]:
        sets = parts.mixture.datasets(split)
        return load_groups(sets, tasks, parts.inputs, limit=limit, seed=seed, device=device)

    adapt = load(settings.adapt, settings.adapt_examples) if strategy.needs != "weights" else {}
    data = TaskData(
        parts.model,
        parts.tasks,
        {task: without_targets(group) for task, group in adapt.items()},
        adapt if strategy.needs == "labelled" else None,
        load("validation", settings.examples),
        seed=seed,
        split=settings.adapt,
        say=say,
    )
    data.model.eval()
    for expert, own in inputs.tasks.items():
        chosen = {task: data.validation[task] for task in own}
        data.reference = {**data.reference, **headlines(data.runs(inputs.experts[expert]), data.tasks, chosen, 200)}
    return data
