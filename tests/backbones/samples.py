"""Options of configs/ as plain mappings, and small inputs of every kind."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from runner.config.build import build
from runner.config.paths import config_root
from runner.specs import InputSpec
from runner.types import Features

SPECS = {
    "image": InputSpec("image", size=(64, 64)),
    "text": InputSpec("text", vocab_size=60, pad_token_id=0, max_length=16),
    "table": InputSpec("table", num_numeric=3, cardinalities=(4, 7)),
    "graph": InputSpec("graph", elements=(1, 6, 8), num_atoms=6),
}


def options(group: str) -> list[str]:
    """Every YAML file of a config group."""
    return sorted(path.stem for path in Path(config_root()).glob(f"{group}/*.yaml"))


def option(group: str, name: str) -> dict[str, Any]:
    """One option, its defaults list resolved."""
    return copy.deepcopy(_composed(group, name))


@functools.cache
def _composed(group: str, name: str) -> dict[str, Any]:
    with initialize_config_dir(str(Path(config_root()).resolve()), version_base=None):
        found = OmegaConf.to_container(compose(overrides=[f"+{group}={name}"]))[group]
    return {key: 100 if value == "${trainer.max_steps}" else value for key, value in found.items()}


def backbone(config: dict[str, Any], inputs: InputSpec | None = None, seed: int = 0, **changes: Any) -> Any:
    """A backbone from its config, initialised from a seed."""
    kind = kind_of(config)
    torch.manual_seed(seed)
    return build({**config, **changes}, inputs or SPECS[kind], where="backbone")


def kind_of(config: dict[str, Any]) -> str:
    """What the backbone of this config reads."""
    from runner.config.build import locate

    return locate(config["_target_"]).input_kind


def example(
    kind: str, batch: int = 2, size: tuple[int, int] = (64, 64), length: int = 8, seed: int = 1
) -> dict[str, Tensor]:
    """Inputs of one kind; the texts have different lengths."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "image":
        return {"pixels": torch.rand(batch, 3, *size, generator=generator)}
    if kind == "graph":
        return molecules(batch, generator)
    if kind == "table":
        spec = SPECS["table"]
        columns = [torch.randint(0, n, (batch,), generator=generator) for n in spec.cardinalities]
        return {
            "numeric": torch.randn(batch, spec.num_numeric, generator=generator),
            "categorical": torch.stack(columns, dim=1),
        }
    ids = torch.randint(1, SPECS["text"].vocab_size, (batch, length), generator=generator)
    mask = (torch.arange(length) < torch.arange(length, length - batch, -1).clamp(min=2)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def molecules(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Chains of six, five, … atoms, all with a double bond at their end."""
    most = SPECS["graph"].num_atoms
    real = torch.arange(most) < torch.arange(most, most - batch, -1)[:, None]
    atoms = torch.tensor([1, 6, 8])[torch.randint(0, 3, (batch, most), generator=generator)] * real
    bonds = torch.zeros(batch, most, most, dtype=torch.int64)
    bonds.diagonal(1, 1, 2).fill_(1)
    bonds[:, 0, 1] = 2
    bonds = (bonds + bonds.transpose(1, 2)) * real.unsqueeze(1) * real.unsqueeze(2)
    positions = torch.randn(batch, most, 3, generator=generator) * real.unsqueeze(-1)
    return {"atoms": atoms, "positions": positions, "bonds": bonds}


def tensors(features: Features) -> list[Tensor]:
    """All tensors of features, the mask left out and tokens of padding zeroed."""
    tokens = [] if features.tokens is None else [features.tokens * features.mask.unsqueeze(-1)]
    pooled = [] if features.pooled is None else [features.pooled]
    return [*(features.pyramid or []), *tokens, *pooled]


def scalar(features: Features) -> Tensor:
    """A number that depends on every feature in its own way."""
    parts = tensors(features)
    weights = [torch.linspace(-1, 1, part.numel()).view_as(part) for part in parts]
    return sum(
        (part.float() * weight).mean() + part.float().square().mean()
        for part, weight in zip(parts, weights, strict=True)
    )
