"""From the frozen configuration to live objects: what `train`, `eval` and `--dry-run` have in common."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from runner.backbones.base import Backbone
from runner.backbones.tangent import Tangent
from runner.config import plugins
from runner.config.build import build
from runner.errors import UserError
from runner.mixtures.base import Mixture
from runner.randomness import forked_rng
from runner.specs import InputSpec
from runner.tasks.base import Task
from runner.training.kept import input_spec
from runner.types import Group, everything
from runner.weighting.base import Weighting
from runner.weighting.reach import Reach, find_reach


@dataclass
class Parts:
    """A model and what it is trained on."""

    config: dict[str, Any]
    mixture: Mixture
    inputs: InputSpec
    tasks: dict[str, Task]
    model: nn.Module


def assemble(
    config: Mapping[str, Any],
    data_root: str | None = None,
    must_have_data: bool = True,
    kept: Mapping[str, Any] | None = None,
) -> Parts:
    """Open the mixture, then build tasks and model with the configuration's seed.

    Args:
        config: the frozen configuration of a `train` run.
        data_root: where data lies now, if not where the configuration says.
        must_have_data: False goes on without data where the model can be built without.
        kept: what `runner.training.kept.kept_inputs` read: the mixture then does not look at its data at all.

    Raises:
        UserError: everything that is wrong with the data or with the components.
    """
    problems = plugins.register(config.get("plugins") or [])
    if problems:
        raise UserError(problems)
    seed_everything(config["seed"])
    mixture: Mixture = build(config["mixture"], data_root or config["data_root"], where="mixture")
    if kept is not None:
        mixture.restore(kept["learned"], config["backbone"].get("pretrained"))
        inputs = input_spec(kept)
    else:
        problems = mixture.check()
        if problems and (must_have_data or mixture.input_kind not in ("image", "graph")):
            raise UserError(problems)
        inputs = mixture.setup(config["backbone"].get("pretrained"))
    tasks = {
        name: build(task, name, where=f"mixture.tasks.{name}") for name, task in config["mixture"]["tasks"].items()
    }

    def make_backbone() -> Backbone:
        return build(config["backbone"], inputs, where="backbone")

    # Seeded again: what the mixture drew while it opened its data must not move the initial weights.
    seed_everything(config["seed"])
    model = build(config["architecture"], make_backbone, tasks, where="architecture")
    finish_model(model, config)
    return Parts(dict(config), mixture, inputs, tasks, model)


def finish_model(model: nn.Module, config: Mapping[str, Any]) -> None:
    """What comes on top of an architecture: the adapter in its backbones, their tangent space, frozen heads."""
    adapter = build(config.get("adapter"), where="adapter")
    for backbone in model.all_backbones() if adapter is not None else ():  # type: ignore[operator]
        adapter.adapt(backbone)
    finetune = config.get("finetune") or {}
    if finetune.get("mode") == "linearized":
        for parent in [m for m in model.modules() if not isinstance(m, Backbone)]:
            for name, child in list(parent.named_children()):
                if isinstance(child, Backbone):
                    setattr(parent, name, Tangent(child))
    if finetune.get("heads") == "probe":
        model.heads.requires_grad_(False)  # type: ignore[union-attr,operator]


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def probe_group(inputs: InputSpec) -> Group:
    """One made-up example of the right shape: what a parameter count or a walk over the graph needs."""
    generator = torch.Generator().manual_seed(0)
    if inputs.kind == "image":
        height, width = inputs.size or (64, 64)
        tensors = {"pixels": torch.rand(1, 3, height, width, generator=generator)}
    elif inputs.kind == "text":
        ids = torch.randint(inputs.vocab_size or 1, (1, min(inputs.max_length or 16, 128)), generator=generator)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif inputs.kind == "graph":
        tensors = _probe_molecule(inputs.elements, inputs.num_atoms or 8, generator)
    else:
        codes = torch.zeros(1, len(inputs.cardinalities), dtype=torch.int64)
        tensors = {"numeric": torch.rand(1, inputs.num_numeric, generator=generator), "categorical": codes}
    return Group("probe", tensors)


def _probe_molecule(elements: tuple[int, ...], atoms: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A chain of atoms at random places."""
    kinds = torch.tensor(elements or (6,))[torch.randint(len(elements) or 1, (1, atoms), generator=generator)]
    bonds = torch.zeros(1, atoms, atoms, dtype=torch.int64)
    bonds[0].diagonal(1).fill_(1)
    positions = 3 * torch.randn(1, atoms, 3, generator=generator)
    return {"atoms": kinds, "positions": positions, "bonds": bonds + bonds.transpose(1, 2)}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters in the model's own order."""
    return [p for p in model.parameters() if p.requires_grad]


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer updates running statistics while it trains."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def counted_as_shared(parts: Parts, weighting: Weighting) -> Reach:
    """`probe_reach`, with the shared parameters that `weighting.shared` names.

    Raises:
        UserError: a pattern matches no shared parameter.
    """
    names = [name for name, p in parts.model.named_parameters() if p.requires_grad]
    return probe_reach(parts).restrict(names, weighting.shared_patterns)


def probe_reach(parts: Parts) -> Reach:
    """Which parameters each task's loss reaches: one forward pass in evaluation mode on a made-up example.

    Evaluation mode and a forked generator leave BatchNorm statistics and random numbers as they were.
    """
    was_training = parts.model.training
    device = next(parts.model.parameters()).device
    parts.model.eval()
    with forked_rng(), torch.enable_grad():
        predictions = parts.model(probe_group(parts.inputs).to(device), list(parts.tasks))
    parts.model.train(was_training)
    return find_reach({task: everything(predictions[task]) for task in parts.tasks}, trainable(parts.model))
