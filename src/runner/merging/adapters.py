"""LoRA adapters of PEFT as experts: W + ΔW, computed row by row as it is read; and their factors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from runner.errors import Problem, UserError
from runner.merging.coefficients import matches
from runner.merging.disk import SafetensorsSource, some
from runner.merging.sources import Source, TensorInfo
from runner.merging.torch_files import TorchSource

PREFIX = "base_model.model."
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Factors:
    """One module's LoRA: ΔW = scaling · B A, transposed where the base stores its weights so.

    Attributes:
        a: name of A (r, in), or of the embedding's A (r, tokens).
        b: name of B (out, r), or of the embedding's B (dim, r).
        scaling: α/r, or α/√r for rank-stabilised LoRA.
        transposed: whether W is stored as (in, out): Conv1D of GPT-2, and embeddings.
    """

    a: str
    b: str
    scaling: float
    transposed: bool


def read_adapter(folder: Path, label: str) -> tuple[dict[str, Any], Source]:
    """An adapter's configuration and tensors.

    Raises:
        UserError: the files are not there or damaged, or it is no plain LoRA.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from error
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise UserError(f"{folder} is an adapter of kind {kind or 'unknown'}; only LORA can be merged")
    if config.get("use_dora"):
        raise UserError(
            f"{folder} is a DoRA adapter: its magnitudes are no task vector",
            "merge it into its base with PEFT's merge_and_unload first",
        )
    for name, kind_of in (("adapter_model.safetensors", SafetensorsSource), ("adapter_model.bin", TorchSource)):
        if (folder / name).is_file():
            return config, kind_of([folder / name], label)
    raise UserError(f"{folder} has no adapter_model.safetensors", "an adapter's folder as PEFT saves it")


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """α/r of one module (α/√r with use_rslora), with PEFT's per-module patterns."""
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if matches(rf"re:(.*\.)?({pattern})$", module):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def factors_of(config: Mapping[str, Any], adapter: Source) -> tuple[dict[str, Factors], dict[str, str]]:
    """Module → its factors, and full tensors (biases, modules_to_save): name in the model → name in the adapter."""
    names = adapter.tensors()
    factors, full = {}, {}
    for name in names:
        plain = name.removeprefix(PREFIX)
        for a, b, embedding in ((".lora_A", ".lora_B", False), (".lora_embedding_A", ".lora_embedding_B", True)):
            if f"{a}." in f"{plain}.":
                module = plain.split(a)[0]
                other = name.replace(a, b)
                if other not in names:
                    raise UserError(f"{adapter.label}: the adapter has {name} but no {other}")
                rank = names[name].shape[0]
                transposed = embedding or bool(config.get("fan_in_fan_out"))
                factors[module] = Factors(name, other, scaling_of(config, module, rank), transposed)
                break
        else:
            if ".lora_" not in plain:
                full[plain.replace(".modules_to_save", "")] = name
    return factors, full


class AdapterSource(Source):
    """A base with a LoRA adapter on it: the tensors of the merged model, computed as they are read.

    Args:
        folder: as PEFT saves it.
        base: the model it was trained on.
        label: for messages.
    """

    def __init__(self, folder: Path, base: Source, label: str) -> None:
        self.label, self.folder, self.base, self.aliases = label, folder, base, base.aliases
        self.config, self.adapter = read_adapter(folder, label)
        factors, full = factors_of(self.config, self.adapter)
        infos = dict(base.tensors())
        problems = []
        self.factors = {}
        for module, pair in factors.items():
            name = _in_base(f"{module}.weight", infos)
            a, b = self.adapter.tensors()[pair.a].shape, self.adapter.tensors()[pair.b].shape
            if name is None:
                problems.append(
                    Problem(f"{folder}: the base has no '{module}.weight'", "is it the adapter's own base?")
                )
                continue
            if len(a) != 2 or len(b) != 2:
                problems.append(Problem(f"{folder}: LoRA of a convolution ('{module}') cannot be merged"))
                continue
            shape = (a[1], b[0]) if pair.transposed else (b[0], a[1])
            if shape != infos[name].shape or a[0] != b[1]:
                what = (
                    f"{folder}: '{module}' changes a weight of {list(shape)}, the base's is {list(infos[name].shape)}"
                )
                problems.append(Problem(what, "is it the adapter's own base?"))
                continue
            self.factors[name] = pair
        self.full = {}
        for name, stored in full.items():
            inside = _in_base(name, infos) or name
            self.full[inside] = stored
            infos[inside] = self.adapter.tensors()[stored]
        if problems:
            raise UserError(problems)
        self._infos = infos

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        if name in self.full:
            return self.adapter.read(self.full[name], start, stop)
        own = self.base.read(name, start, stop)
        pair = self.factors.get(name)
        if pair is None:
            return own
        columns = self._infos[name].shape[1]
        stop = self._infos[name].numel if stop is None else stop
        first, last = start // columns, -(-stop // columns)
        delta = delta_rows(self.adapter, pair, first, last)
        return own.float() + delta.view(-1)[start - first * columns : stop - first * columns]


def delta_rows(adapter: Source, pair: Factors, first: int, last: int) -> Tensor:
    """Rows [first, last) of ΔW as the base stores it, float32."""
    a, b = adapter.whole(pair.a).float(), adapter.whole(pair.b).float()
    rows = (b @ a[:, first:last]).T if pair.transposed else b[first:last] @ a
    return rows.contiguous() * pair.scaling


def _in_base(name: str, infos: Mapping[str, TensorInfo]) -> str | None:
    """A tensor's name in the base, which may be the model with its head or without."""
    if name in infos:
        return name
    ends = [known for known in infos if known.endswith(f".{name}") or name.endswith(f".{known}")]
    return ends[0] if len(ends) == 1 else None


class FactorSource(Source):
    """An adapter by itself: its factors by module.

    Args:
        folder: as PEFT saves it.
        label: for messages.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.label, self.folder = label, folder
        self.config, self.adapter = read_adapter(folder, label)
        self.factors, full = factors_of(self.config, self.adapter)
        if full:
            what = f"{folder}: the adapter also holds whole tensors ({some(sorted(full))}), which are no factors"
            raise UserError(what, "merge it onto its base instead: merge=task_arithmetic base=DIR")

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.adapter.tensors()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.adapter.read(name, start, stop)

    def pair(self, module: str) -> tuple[Tensor, Tensor, float]:
        """A (r, in), B (out, r) in float32, and the scaling of B A."""
        factors = self.factors[module]
        return self.adapter.whole(factors.a).float(), self.adapter.whole(factors.b).float(), factors.scaling
