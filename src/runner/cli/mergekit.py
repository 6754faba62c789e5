"""Reading mergekit YAML: the common methods, as overrides of `runner merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.cli.hydra_value import hydra_value
from runner.errors import Problem, UserError, suggest

Content = Mapping[str, Any]

METHODS = {
    "linear": "weighted",
    "slerp": "slerp",
    "nuslerp": "nuslerp",
    "multislerp": "multislerp",
    "karcher": "karcher",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare_ties",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs_ties",
    "della": "della",
    "della_linear": "della_linear",
    "model_stock": "model_stock",
    "sce": "sce",
    "nearswap": "nearswap",
    "arcee_fusion": "arcee_fusion",
    "passthrough": "passthrough",
}
"""merge_method → our strategy."""

NORMALIZED = {"linear", "ties", "della"}
"""Methods whose `normalize` is true by default there."""

KNOWN = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "name", "chat_template",
}  # fmt: skip


def overrides_from(path: str) -> list[str]:
    """The overrides of `runner merge` that mean the same as a mergekit file.

    Relative paths of models are taken from the current folder, as mergekit does.

    Raises:
        UserError: the file cannot be read, or asks for what has no counterpart; everything at once.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--from: {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--from: {path} is not sound YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"--from: {path} is not a mergekit file", "it says merge_method and models")
    reader = _Reader(path, content)
    found = reader.read()
    if reader.problems:
        raise UserError(reader.problems)
    return found


class _Reader:
    """Collects overrides and problems of one file."""

    def __init__(self, path: str, content: Content) -> None:
        self.path, self.content = path, content
        self.problems: list[Problem] = []
        self.keys: dict[str, Any] = {}

    def read(self) -> list[str]:
        method = self.content.get("merge_method")
        if method not in METHODS:
            hint = suggest(str(method), METHODS, limit=20)
            self.problems.append(Problem(f"--from: {self.path}: merge_method '{method}' is not known here", hint))
            return []
        for key in self.content:
            if key not in KNOWN:
                self._unsupported(key)
        self.base = _name(self.content.get("base_model"))
        self.parameters = self.content.get("parameters") or {}
        if method == "passthrough":
            self._stack()
        else:
            models = self._models()
            self.experts = [m for m in models if m["model"] != self.base or method in ("linear", "slerp")]
            if method == "slerp" and self.base:  # the base is the first of the two
                self.experts.sort(key=lambda m: m["model"] != self.base)
                if len(self.experts) == 1:
                    self.experts.insert(0, {"model": self.base, "parameters": {}})
            self._method(str(method))
        self._rest()
        return [f"merge={METHODS[method]}", *(f"++{k}={hydra_value(v)}" for k, v in self.keys.items())]

    def _unsupported(self, what: str) -> None:
        hint = "take it out of the file, or write the merge as `runner merge` overrides"
        self.problems.append(Problem(f"--from: {self.path}: '{what}' has no counterpart here", hint))

    def _models(self) -> list[dict[str, Any]]:
        if "slices" in self.content:
            slices = self.content["slices"]
            sources = [s.get("sources") or [] for s in slices] if isinstance(slices, list) else []
            if len(sources) != 1 or any(s.get("layer_range", [0])[0] != 0 for s in sources[0]):
                self._unsupported("slices of several layer ranges with a merge_method other than passthrough")
                return []
            entries = sources[0]
        else:
            entries = self.content.get("models") or []
        found = []
        for entry in entries:
            name = _name(entry.get("model")) if isinstance(entry, dict) else None
            if name is None:
                self.problems.append(Problem(f"--from: {self.path}: a model without a name: {entry}"))
                continue
            found.append({"model": name, "parameters": entry.get("parameters") or {}})
        if not found:
            self.problems.append(Problem(f"--from: {self.path} names no models", "models: [{model: DIR}, …]"))
        return found

    def _method(self, method: str) -> None:
        keys = self.keys
        keys["models"] = [m["model"] for m in self.experts]
        if self.base and method not in ("linear", "slerp"):
            keys["base"] = self.base
        weighted = method not in ("slerp", "nearswap", "arcee_fusion", "model_stock", "sce")
        if weighted:
            self._weights()
        normalize = self._global("normalize", method in NORMALIZED)
        if method == "linear":
            keys["merge.normalize"] = bool(normalize)
        elif METHODS[method] in ("ties", "dare_ties", "breadcrumbs_ties", "della"):
            keys["merge.aggregate"] = "mean" if normalize else "sum"
        scale = self._global("lambda", 1.0)
        if method in ("task_arithmetic", "dare_linear", "breadcrumbs", "della_linear", "dare_ties", "ties", "della",
                      "breadcrumbs_ties"):  # fmt: skip
            keys["merge.scale"] = scale
        density = self._even("density", None)
        if method == "ties":
            keys["merge.scope"] = "tensor"  # as there
            keys["merge.density"] = 1.0 if density is None else density
        elif method.startswith("dare"):
            keys["merge.pre.drop.rate"] = round(1.0 - (1.0 if density is None else density), 9)
            keys["merge.pre.drop.rescale"] = bool(self._global("rescale", True))
        elif method.startswith("della"):
            keys["merge.pre.drop.density"] = 1.0 if density is None else density
            keys["merge.pre.drop.spread"] = 2 * self._even("epsilon", 0.15)
            keys["merge.pre.drop.rescale"] = bool(self._global("rescale", True))
        elif method.startswith("breadcrumbs"):
            gamma = self._even("gamma", 0.01)
            keys["merge.pre.mask.largest"] = gamma
            keys["merge.pre.mask.smallest"] = round(max(0.0, 1.0 - (1.0 if density is None else density) - gamma), 9)
        elif method == "slerp":
            self._slerp()
        elif method == "nuslerp":
            flat = self._global("nuslerp_flatten", True)
            wise = "columns" if self._global("nuslerp_row_wise", False) else "rows"  # its rows run along dimension 0
            keys["merge.by"] = "tensor" if flat else wise
        elif method == "sce":
            keys["merge.density"] = self._global("select_topk", 1.0)
        elif method == "nearswap":
            keys["merge.t"] = self._global("t", 1e-3)
        elif method == "karcher":
            keys["merge.steps"] = self._global("max_iter", 10)
            keys["merge.tolerance"] = self._global("tol", 1e-5)

    def _weights(self) -> None:
        """Weights of the models; those that depend on a tensor's name become factors of patterns."""
        rows = [m["parameters"].get("weight", self.parameters.get("weight", 1.0)) for m in self.experts]
        if all(isinstance(r, int | float) for r in rows):
            self.keys["merge.weights"] = [float(r) for r in rows]
            return
        patterns: list[str] = []
        for row in rows:
            for rule in row if isinstance(row, list) and row and isinstance(row[0], dict) else []:
                if rule.get("filter") and rule["filter"] not in patterns:
                    patterns.append(rule["filter"])
        layers: dict[str, list[float]] = {}
        for pattern in [*patterns, None]:
            values = [_filtered(row, pattern) for row in rows]
            if any(isinstance(v, list) for v in values):
                self._unsupported("weight as a gradient over layers")
                return
            layers[f"re:{_escape(pattern)}" if pattern else "*"] = [float(v) for v in values]
        self.keys["merge.weights"] = [1.0] * len(rows)
        self.keys["merge.layers"] = layers

    def _slerp(self) -> None:
        t = self.parameters.get("t", 0.5)
        if isinstance(t, int | float):
            self.keys["merge.t"] = float(t)
            return
        if not isinstance(t, list):
            self._unsupported(f"t: {t}")
            return
        rules = t if t and isinstance(t[0], dict) else [{"value": t}]
        table: dict[str, float] = {}
        count = self._layer_count()
        for rule in rules:
            value, pattern = rule.get("value"), rule.get("filter")
            words = rf".*{_escape(pattern)}" if pattern else ""
            if isinstance(value, int | float):
                table[f"re:{words}" if pattern else "*"] = float(value)
            elif isinstance(value, list) and count:
                for layer in range(count):
                    table[rf"re:\.{layer}\.{words}"] = _gradient(value, layer, count)
                if not pattern:
                    table["*"] = float(value[0])
            else:
                self._unsupported("t as a gradient over layers without layer_range")
        if "*" in table:
            self.keys["merge.t"] = table.pop("*")
        self.keys["merge.t_at"] = table

    def _layer_count(self) -> int:
        """How many layers there are, where the file says so."""
        for part in self.content.get("slices") or []:
            for source in part.get("sources") or []:
                if "layer_range" in source:
                    return int(source["layer_range"][1])
        return 0

    def _stack(self) -> None:
        """Passthrough: slices of layers, one source each."""
        slices = []
        for part in self.content.get("slices") or []:
            sources = part.get("sources") or []
            if len(sources) != 1 or "layer_range" not in sources[0] or sources[0].get("parameters"):
                self._unsupported("passthrough slices of more than a model and a layer_range")
                return
            slices.append((_name(sources[0].get("model")), [int(n) for n in sources[0]["layer_range"]]))
        models = list(dict.fromkeys(str(m) for m, _ in slices))
        if not models:
            self.problems.append(Problem(f"--from: {self.path}: passthrough needs slices"))
        self.keys["models"] = models
        self.keys["merge.slices"] = [{"model": models.index(str(m)), "layers": span} for m, span in slices]

    def _global(self, name: str, default: Any) -> Any:
        value = self.parameters.get(name, default)
        if isinstance(value, list | dict):
            self._unsupported(f"{name} that depends on the tensor")
            return default
        return value

    def _even(self, name: str, default: float | None) -> Any:
        """A parameter that models may set, and that must be the same for all here."""
        values = [m["parameters"].get(name, self.parameters.get(name, default)) for m in self.experts]
        if any(isinstance(v, list | dict) for v in values) or len(set(values)) > 1:
            self._unsupported(f"{name} that differs between models or tensors")
            return default
        return values[0] if values else default

    def _rest(self) -> None:
        kinds = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", None: None}
        dtype = self.content.get("out_dtype") or self.content.get("dtype")
        if dtype not in kinds:
            self._unsupported(f"dtype: {dtype}")
        elif dtype is not None:
            self.keys["dtype"] = dtype
        tokenizer = self.content.get("tokenizer_source")
        if isinstance(self.content.get("tokenizer"), dict):
            section = self.content["tokenizer"]
            tokenizer = section.get("source", "union")
            if section.get("tokens") or section.get("pad_to_multiple_of"):
                self._unsupported("tokenizer.tokens and tokenizer.pad_to_multiple_of")
        if tokenizer in ("base", "union"):
            self.keys["embed"] = tokenizer
        elif tokenizer is not None:
            self._unsupported(f"tokenizer_source: {tokenizer}")
        if self.content.get("chat_template") not in (None, "auto"):
            self._unsupported("chat_template")


def _name(model: Any) -> str | None:
    """The path in `model: X` or `model: {model: {path: X}}`."""
    while isinstance(model, dict):
        model = model.get("model", model.get("path"))
    return str(model) if model is not None else None


def _filtered(row: Any, pattern: str | None) -> Any:
    """What one model's parameter is for a filter; without one, for everything else."""
    if not isinstance(row, list):
        return row
    if not row or not isinstance(row[0], dict):
        return row
    for rule in row:
        if rule.get("filter") in (pattern, None):
            return rule.get("value")
    return 0.0


def _gradient(values: Sequence[float], layer: int, count: int) -> float:
    """A value for one layer out of a list that is spread evenly over all of them."""
    if len(values) == 1 or count == 1:
        return float(values[0])
    place = layer / (count - 1) * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return float(values[low] + (place - low) * (values[low + 1] - values[low]))


def _escape(pattern: Any) -> str:
    return str(pattern).replace(".", r"\.")
