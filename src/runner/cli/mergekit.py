"""Reading mergekit YAML: the common methods, as overrides of `runner merge`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.cli.hydra_value import hydra_value
from runner.cli.mergekit_values import by_tensor, is_gradient, layers_of, one, sound
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

PARAMETERS = {
    "weight", "density", "gamma", "epsilon", "lambda", "normalize", "rescale", "t", "select_topk", "nuslerp_flatten",
    "nuslerp_row_wise", "max_iter", "tol",
    "int8_mask", "eps",  # how it computes, not what
}  # fmt: skip
"""What may stand under `parameters`; as there, a method takes no notice of those that it does not read."""

KNOWN = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "name", "chat_template",
}  # fmt: skip
IN_SLICE, IN_MODEL = {"sources", "parameters", "base_model"}, {"model", "parameters", "layer_range"}


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
        self.levels: list[Content] = [self._parameters(self.content, "parameters")]  # the first that has a value counts
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
            for source in sources[0]:
                whole, span = layers_of(_name(source.get("model"))), source.get("layer_range")
                if span and whole and span[1] != whole:
                    self._unsupported(f"layer_range {span} of a model with {whole} layers: a part of them")
            entries = sources[0]
            self._only(slices[0], IN_SLICE, "slices")
            self.levels.insert(0, self._parameters(slices[0], "slices: parameters"))
            self.base = _name(slices[0].get("base_model")) or self.base
        else:
            entries = self.content.get("models") or []
        found = []
        for entry in entries:
            name = _name(entry.get("model")) if isinstance(entry, dict) else None
            if name is None:
                self.problems.append(Problem(f"--from: {self.path}: a model without a name: {entry}"))
                continue
            self._only(entry, IN_MODEL, "a model")
            found.append({"model": name, "parameters": self._parameters(entry, f"parameters of {name}")})
        if not found:
            self.problems.append(Problem(f"--from: {self.path} names no models", "models: [{model: DIR}, …]"))
        return found

    def _only(self, given: Content, known: set[str], where: str) -> None:
        for key in given:
            if key not in known:
                self._unsupported(f"{where}: {key}")

    def _parameters(self, given: Content, where: str) -> Content:
        found = given.get("parameters") or {}
        if not isinstance(found, dict):
            self._unsupported(where)
            return {}
        for key in found:
            if key not in PARAMETERS:
                hint = suggest(str(key), PARAMETERS, limit=20)
                self.problems.append(Problem(f"--from: {self.path}: {where}: '{key}' is not known here", hint))
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
        if method == "ties":
            keys["merge.scope"] = "tensor"  # as there
            rows, table = self._by_tensor("density", 1.0)
            keys["merge.density"] = one(rows)
            if table:
                keys["merge.density_at"] = {pattern: one(values) for pattern, values in table.items()}
        elif method.startswith("dare"):
            keys["merge.pre.drop.rate"] = one([round(1.0 - d, 9) for d in self._each("density", 1.0)])
            keys["merge.pre.drop.rescale"] = bool(self._global("rescale", True))
        elif method.startswith("della"):
            keys["merge.pre.drop.density"] = one(self._each("density", 1.0))
            keys["merge.pre.drop.spread"] = one([2 * e for e in self._each("epsilon", 0.15)])
            keys["merge.pre.drop.rescale"] = bool(self._global("rescale", True))
        elif method.startswith("breadcrumbs"):
            gammas, densities = self._each("gamma", 0.01), self._each("density", 1.0)
            smallest = [round(max(0.0, 1.0 - d - g), 9) for d, g in zip(densities, gammas, strict=True)]
            keys["merge.pre.mask.largest"], keys["merge.pre.mask.smallest"] = one(gammas), one(smallest)
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
        rows, table = self._by_tensor("weight", 1.0)
        if not table:
            self.keys["merge.weights"] = rows
            return
        self.keys["merge.weights"] = [1.0] * len(rows)
        self.keys["merge.layers"] = {**table, "*": rows}

    def _slerp(self) -> None:
        rows, table = self._by_tensor("t", 0.5, per_model=False)
        self.keys["merge.t"] = rows[0]
        if table:
            self.keys["merge.t_at"] = {pattern: values[0] for pattern, values in table.items()}

    def _by_tensor(
        self, name: str, default: float, per_model: bool = True
    ) -> tuple[list[float], dict[str, list[float]]]:
        """A parameter that may depend on model, layer and name.

        Returns:
            Its values for tensors that no pattern names, one per model, and pattern → values for the others, of which
            the first that fits counts.
        """
        own = [[m["parameters"]] for m in self.experts] if per_model else [[]]
        rows = [[level[name] for level in [*mine, *self.levels] if name in level] + [default] for mine in own]
        settings = [setting for row in rows for setting in row]
        for setting in settings:
            if not sound(setting):
                self._unsupported(f"{name}: {setting}")
                return [default] * len(rows), {}
        count = self._layer_count() if any(map(is_gradient, settings)) else 0
        if count == 0 and any(map(is_gradient, settings)):
            self._unsupported(f"{name} as a gradient over layers, where neither layer_range nor a config.json says")
            return [default] * len(rows), {}
        return by_tensor(rows, count)

    def _layer_count(self) -> int:
        """How many layers there are, where the file or the models say so."""
        for part in self.content.get("slices") or []:
            for source in part.get("sources") or []:
                if "layer_range" in source:
                    return int(source["layer_range"][1])
        for model in (self.base, *(m["model"] for m in self.experts)):
            if count := layers_of(model):
                return count
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
        value = next((level[name] for level in self.levels if name in level), default)
        if isinstance(value, list | dict):
            self._unsupported(f"{name} that depends on the tensor")
            return default
        return value

    def _each(self, name: str, default: float) -> list[float]:
        """A parameter that models may set, and that is the same for all tensors here."""
        rows, table = self._by_tensor(name, default)
        if table:
            self._unsupported(f"{name} that depends on the tensor")
        return rows

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
