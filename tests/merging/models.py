"""Small models whose sums and differences are exact in float32, and what tests do with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {
    "embed.weight": (40, 17),
    "layers.0.attn.weight": (24, 16),
    "layers.0.attn.bias": (24,),
    "layers.1.conv.weight": (8, 4, 3, 3),
    "layers.1.norm.weight": (8,),
    "temperature": (),
}


LARGE = SHAPES | {"embed.weight": (260, 257)}
"""One tensor of more than a grain, so that it is cut."""


def base_model(shapes: Mapping[str, tuple[int, ...]] = SHAPES, seed: int = 0) -> dict[str, Tensor]:
    """Values that are multiples of 1/256, between -2 and 2."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(-512, 513, shape, generator=generator) / 256 for name, shape in shapes.items()}


def expert_of(base: Mapping[str, Tensor], seed: int, sparsity: float = 0.3) -> dict[str, Tensor]:
    """The base plus multiples of 1/4096, some of them 0: differences are exact."""
    generator = torch.Generator().manual_seed(100 + seed)
    out = {}
    for name, tensor in base.items():
        step = torch.randint(-600, 601, tensor.shape, generator=generator) / 4096
        out[name] = tensor + step * (torch.rand(tensor.shape, generator=generator) > sparsity)
    return out


def experts_of(base: Mapping[str, Tensor], count: int) -> dict[str, dict[str, Tensor]]:
    """Experts a, b, c, …"""
    return {chr(97 + t): expert_of(base, t) for t in range(count)}


def write(folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, **config: object) -> Path:
    """A model's folder as transformers saves it, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "dtype": "float32"} | config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    for n, file in enumerate(files):
        save_file({name: tensors[name] for name in names[n::shards]}, folder / file)
    weight_map = {name: files[i % shards] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All of a model's values."""
    return torch.cat([t.reshape(-1).float() for t in tensors.values()])


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], atol: float = 1e-5) -> None:
    """The same names, nearly the same values."""
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
