"""Passthrough: a deeper (or shallower) model out of layers of others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from runner.errors import Problem, UserError
from runner.merging.base import Arranged, Arrangement
from runner.merging.sources import Models, TensorInfo

LAYER = re.compile(r"^(.*?\.|)(\d+)\.(.+)$")
COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
FIRST = ("embed", "wte", "wpe")
"""Parts of names of tensors that stand before the first layer."""


@dataclass(kw_only=True)
class Passthrough(Arrangement):
    """Stack layers of the models in a new order; nothing is computed.

    Attributes:
        slices: [{model: 0, layers: [0, 24]}, {model: 1, layers: [8, 32]}]: the number of a model in `models`, and the
            first layer and the one after the last. Embeddings come from the first slice's model, what follows the
            layers (final norm, head) from the last one's.
    """

    copies: ClassVar[int] = 1
    ignores: ClassVar[tuple[str, ...]] = ("pre", "weights", "normalize", "layers")

    slices: list[dict[str, Any]] = field(default_factory=list)

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        found = super().check(experts, has_base)
        if not self.slices:
            hint = "such as 'merge.slices=[{model: 0, layers: [0, 6]}, {model: 1, layers: [4, 12]}]'"
            found.append(Problem("merge.slices says which layers are stacked, and it is empty", hint))
        for number, part in enumerate(self.slices):
            span = part.get("layers")
            if set(part) != {"model", "layers"} or not _is_span(span):
                what = f"merge.slices: entry {number} must be {{model: NUMBER, layers: [FIRST, END]}}, not {part}"
                found.append(Problem(what))
            elif part["model"] not in range(len(experts)):
                what = f"merge.slices: entry {number} names model {part['model']}, there are {len(experts)}"
                found.append(Problem(what, "they are counted from 0, in the order of models"))
        return found

    def arrange(self, models: Models) -> Stacked:
        return Stacked(models, [(int(p["model"]), int(p["layers"][0]), int(p["layers"][1])) for p in self.slices])


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list) and len(span) == 2 and all(isinstance(n, int) for n in span) and 0 <= span[0] < span[1]
    )


class Stacked(Arranged):
    """Tensors of several models under new layer numbers.

    Args:
        models: their sources.
        slices: (model, first layer, layer after the last) in order.

    Raises:
        UserError: a model has no layers, or not these.
    """

    def __init__(self, models: Models, slices: list[tuple[int, int, int]]) -> None:
        self.label = "result"
        self.sources = list(models.experts.values())
        self.folder, self.aliases = self.sources[slices[0][0]].folder, {}
        self.files = [f for s in self.sources for f in getattr(s, "files", ())]
        self._places: dict[str, tuple[int, str]] = {}
        problems = []
        tables = [layers_of(s.tensors()) for s in self.sources]
        for (prefix, table), source in zip(tables, self.sources, strict=True):
            if not table:
                problems.append(Problem(f"{source.label} has no numbered layers", f"looked for names like {prefix}0.…"))
        depth = 0
        for model, first, end in slices:
            prefix, table = tables[model]
            if end > len(table) > 0:
                problems.append(Problem(f"{self.sources[model].label} has {len(table)} layers, not {end}"))
                continue
            for layer in range(first, end):
                for rest in table.get(layer, []):
                    self._places[f"{prefix}{depth}.{rest}"] = (model, f"{prefix}{layer}.{rest}")
                depth += 1
        if problems:
            raise UserError(problems)
        for name in self.sources[slices[0][0]].tensors():
            outer = not _in_layers(name, tables[slices[0][0]][0])
            if outer and any(word in name for word in FIRST):
                self._places[name] = (slices[0][0], name)
        for name in self.sources[slices[-1][0]].tensors():
            if name not in self._places and not _in_layers(name, tables[slices[-1][0]][0]):
                self._places[name] = (slices[-1][0], name)
        self._infos = {n: self.sources[m].tensors()[stored] for n, (m, stored) in self._places.items()}
        self.changes = dict.fromkeys(self._depth_keys(), depth)

    def _depth_keys(self) -> list[str]:
        import json

        path = None if self.folder is None else self.folder / "config.json"
        if path is None or not path.is_file():
            return []
        config = json.loads(path.read_text(encoding="utf-8"))
        return [key for key in COUNTS if key in config]

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        model, stored = self._places[name]
        return self.sources[model].read(stored, start, stop)


def layers_of(names: Mapping[str, Any]) -> tuple[str, dict[int, list[str]]]:
    """The prefix of numbered layers (the one with most tensors), and layer → the rest of its tensors' names."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        match = LAYER.match(name)
        if match:
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(match[3])
    if not found:
        return "layers.", {}
    return max(found.items(), key=lambda item: sum(map(len, item[1].values())))


def _in_layers(name: str, prefix: str) -> bool:
    match = LAYER.match(name)
    return match is not None and match[1] == prefix
