"""What a merge is: experts (+ base) → one model, tensor by tensor.

A data-free strategy is a `Merge`: a dataclass whose fields are its config keys, with

* `survey(look)`: an optional first look at everything, for what must be known of the whole model (a global threshold,
  norms). It returns plain Python (numbers, lists, dicts), which is written down with the result and makes a killed
  merge go on without looking again.
* `merge(block, state)`: a pure function of one `Block`, the same piece of every model. `unit` says what a piece must
  be: "element" (any slice of a tensor), "tensor" (a whole one) or "model" (see `WholeModel`).

Most are `TaskVectorMerge`s, which only say how task vectors τ_t = θ_t − θ₀ become one:

    θ = θ₀ + scale · post(combine(pre(τ_1), …, pre(τ_T)))

`pre` and `post` are lists of `Transform`s. The same strategy runs streaming (`runner.merging.stream`) and in memory
(`runner.merging.memory`); blocks are float32 whatever is stored. Strategies that need data say so in `needs` and are
`DataMerge`s.

    models = Models.in_memory({"a": expert_a, "b": expert_b}, base)
    merged = merge_in_memory(Ties(density=0.2), models)     # Merged
    merged.tensors, merged.for_task("a")
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from runner.config.kinds import PositiveInt
from runner.errors import Problem, UserError
from runner.merging.blocks import Block, Look, Split, Unit
from runner.merging.coefficients import factor_at, table
from runner.merging.packing import packed_bytes
from runner.merging.sources import Models, Source
from runner.merging.transforms.base import Transform, Transforms, make_transforms


@dataclass(kw_only=True)
class Merge(ABC):
    """Base of all strategies: what it needs and gives, and the keys that all have.

    Attributes:
        needs: "weights" alone, or "unlabelled" or "labelled" data as well.
        returns: a "state_dict" of the experts' architecture, a "module" of its own, or an "ensemble" of several.
        decoder: per-task strategies: how each task's weights come from the shared ones and the stored codes, one of
            `runner.merging.decoders.DECODERS`; None where all tasks share one model.
        base_use: whether a base is "required", "optional" or "unused".
        experts_min, experts_max: how many experts it takes.
        unit: the pieces `merge` must see; "model" cannot stream.
        reads: how often every input is read from beginning to end.
        copies: float32 copies of a piece that `merge` holds at most, in addition to its inputs: for memory estimates.
        ignores: keys of all strategies that mean nothing to this one; setting them is refused.
        structure: whether it takes models of a certain structure only: adapters, numbered layers, plain chains.
        propagates: whether a NaN of any input always shows in the output, so that looking at the output is enough.
        neutral: keys with which the strategy drops and scales nothing: merging one model then gives it back.
        identities: what holds for it: "one" (merging one model gives that model, with `neutral` keys), "identical"
            (so does merging copies of one), "permuted" (the order of experts does not matter), "shift" (adding the
            same tensor to everything adds it to the result), "base" (experts equal to the base give the base).
        averages: whether default weights are 1/T (an average) instead of 1 (a sum).
        pre: transforms of every task vector.
        weights: one coefficient per expert; default: 1/T for averages, 1 for sums of task vectors.
        normalize: divide the weights by their sum.
        layers: pattern → factor of the weights (one number, or one per expert) for the tensors whose names fit; the
            first that fits counts. Patterns are globs, or `re:` and a regular expression. A list of pairs
            [[pattern, factor], …] means the same.
        rounds: how often tuning and merging alternate at the same total budget; of `runner train` only.
    """

    needs: ClassVar[Literal["weights", "unlabelled", "labelled"]] = "weights"
    returns: ClassVar[Literal["state_dict", "module", "ensemble"]] = "state_dict"
    decoder: ClassVar[str | None] = None
    base_use: ClassVar[Literal["required", "optional", "unused"]] = "optional"
    experts_min: ClassVar[int] = 1
    experts_max: ClassVar[int | None] = None
    unit: ClassVar[Unit] = "element"
    reads: ClassVar[int] = 1
    copies: ClassVar[int] = 3
    ignores: ClassVar[tuple[str, ...]] = ()
    structure: ClassVar[bool] = False
    propagates: ClassVar[bool] = False
    neutral: ClassVar[dict[str, Any]] = {}
    identities: ClassVar[frozenset[str]] = frozenset({"one", "identical", "permuted", "shift", "base"})
    averages: ClassVar[bool] = True

    pre: Transforms = field(default_factory=list)
    weights: list[float] | None = None
    normalize: bool = False
    layers: dict[str, Any] | list[list[Any]] = field(default_factory=dict)
    rounds: PositiveInt = 1

    def __post_init__(self) -> None:
        self.pre = make_transforms(self.pre, "merge.pre")
        self.layers = table(self.layers, "merge.layers")

    def passes(self) -> int:
        """How often every input is read with this `pre`."""
        looks = [t for t in self.pre if isinstance(t, Transform) and type(t).survey is not Transform.survey]
        return self.reads + len(looks)

    @property
    def streams(self) -> bool:
        """Whether it runs in memory that does not grow with the model."""
        return self.unit != "model"

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        """What does not fit the models that are to be merged, before anything is read."""
        found = []
        count = len(experts)
        kind = type(self).__name__
        if self.base_use == "required" and not has_base:
            found.append(Problem(f"{kind} works on task vectors and needs the base", "give it: base=DIR"))
        found += [
            Problem(f"merge.{key} means nothing to {kind}", "leave it out")
            for key in self.ignores
            if getattr(self, key)
        ]
        if count < self.experts_min:
            found.append(Problem(f"{kind} needs {self.experts_min} experts or more, not {count}"))
        if self.experts_max is not None and count > self.experts_max:
            found.append(Problem(f"{kind} takes {self.experts_max} experts at most, not {count}"))
        if self.pre and not has_base:
            found.append(Problem("merge.pre changes task vectors and needs the base", "give it: base=DIR"))
        for transform in self.pre:
            if isinstance(transform, Transform):
                found += transform.check(count)
        if self.weights is not None and len(self.weights) != count:
            what = f"merge.weights has {len(self.weights)} values for {count} experts ({', '.join(experts)})"
            found.append(Problem(what, "give one per expert, in the order of models"))
        if self.normalize and self.weights is not None and abs(sum(self.weights)) < 1e-12:
            found.append(Problem("merge.weights sum to 0 and cannot be normalised", "set merge.normalize=false"))
        for pattern, value in self.layers.items():
            numbers = [value] if isinstance(value, int | float) else value
            if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
                found.append(Problem(f"merge.layers: {pattern!r} must be a number, or one per expert, not {value!r}"))
            elif not isinstance(value, int | float) and len(value) != count:
                found.append(Problem(f"merge.layers: {pattern!r} has {len(value)} values for {count} experts"))
        return found

    def weights_at(self, name: str, count: int) -> list[float]:
        """The coefficient of every expert for one tensor."""
        weights = self.weights
        if weights is None:
            weights = [1.0 / count if self.averages else 1.0] * count
        if self.normalize and (total := sum(weights)):
            weights = [w / total for w in weights]
        return [w * f for w, f in zip(weights, factor_at(self.layers, name, count), strict=True)]

    def survey(self, look: Look) -> Any:
        """What must be known of the whole model before the first block is merged; plain Python, None for nothing."""
        return None

    @abstractmethod
    def merge(self, block: Block, state: Any) -> Tensor | Split:
        """The merged piece, shaped like the block's: pure, and the same however a tensor was cut.

        Args:
            block: a piece of every model.
            state: what `survey` gave.
        """

    def parts(self, experts: tuple[str, ...]) -> dict[str, int]:
        """Per-task strategies: what is stored beside the shared model, part → bits per weight, or `packing.RAW`."""
        return {}

    def code_bytes(self, part: str, shape: Sequence[int], experts: tuple[str, ...]) -> int:
        """Bytes of a part's codes for a tensor of this shape; a strategy with `RAW` parts says it itself."""
        return packed_bytes(math.prod(shape), self.parts(experts)[part])

    def scalars(self, name: str, experts: tuple[str, ...], state: Any) -> dict[str, list[float]]:
        """Per-task strategies: numbers of one tensor that its `decoder` needs, part → numbers."""
        return {}


@dataclass(kw_only=True)
class TaskVectorMerge(Merge):
    """θ = θ₀ + scale · post(combine(τ_1, …, τ_T)).

    Attributes:
        scale: λ, of the merged task vector.
        post: transforms of the merged task vector.
    """

    base_use: ClassVar[Literal["required", "optional", "unused"]] = "required"
    averages: ClassVar[bool] = False

    scale: float = 1.0
    post: Transforms = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.post = make_transforms(self.post, "merge.post")

    @abstractmethod
    def combine(self, block: Block, state: Any) -> Tensor:
        """The merged task vector; `block.delta(t)` gives τ_t, `block.weights` the coefficients. A new tensor."""

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        found = super().check(experts, has_base)
        for transform in self.post:
            assert isinstance(transform, Transform)
            if transform.check(-1):
                what = f"merge.post: {type(transform).__name__} changes one merged task vector"
                found.append(Problem(what, "give it one number, not a list"))
            elif type(transform).survey is not Transform.survey:
                what = f"merge.post: {type(transform).__name__} must see the whole merged task vector first"
                found.append(Problem(what, "use it in merge.pre"))
        return found

    def direction(self, block: Block, state: Any) -> Tensor:
        """What `scale` multiplies: the merged task vector after `post`."""
        tau = self.combine(block, state)
        for transform in self.post:
            assert isinstance(transform, Transform)
            tau = transform.apply(tau, block, -1, None)
        return tau

    def merge(self, block: Block, state: Any) -> Tensor:
        tau = self.direction(block, state)
        return torch.add(block.origin, tau, alpha=self.scale)


@dataclass(kw_only=True)
class Arrangement(Merge):
    """A strategy that makes a model of other tensors than its inputs have: stacked layers, joined adapters.

    Attributes:
        adapters: whether its inputs are adapters by themselves, and so is its result.
    """

    base_use: ClassVar[Literal["required", "optional", "unused"]] = "unused"
    ignores: ClassVar[tuple[str, ...]] = ("pre",)
    structure: ClassVar[bool] = True
    propagates: ClassVar[bool] = True
    identities: ClassVar[frozenset[str]] = frozenset()
    adapters: ClassVar[bool] = False

    @abstractmethod
    def arrange(self, models: Models) -> Arranged:
        """The result as a source that computes its tensors when they are read."""

    def merge(self, block: Block, state: Any) -> Tensor:
        return block.model(0)


class Arranged(Source):
    """The result of an arrangement.

    Attributes:
        changes: keys of config.json (or adapter_config.json) that have other values now.
    """

    changes: dict[str, Any]


@dataclass(kw_only=True)
class WholeModel(Merge):
    """A strategy that couples layers and therefore holds whole models: it does not stream."""

    unit: ClassVar[Unit] = "model"
    ignores: ClassVar[tuple[str, ...]] = ("pre",)

    def merge(self, block: Block, state: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} merges whole models, not blocks")

    @abstractmethod
    def merge_all(self, models: Models, names: Sequence[str]) -> dict[str, Tensor]:
        """The merged tensors of these names, float32."""


@dataclass(kw_only=True)
class DataMerge(Merge):
    """A strategy that looks at data: `fit` gets the models and a view of the tasks' data, and gives the result.

    What the view offers is defined where it is made (`runner.merging.data`). A subclass may delegate to data-free
    strategies through `runner.merging.memory.merge_in_memory`.
    """

    needs: ClassVar[Literal["weights", "unlabelled", "labelled"]] = "unlabelled"
    unit: ClassVar[Unit] = "model"

    def merge(self, block: Block, state: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} needs data: it fits whole models, not blocks")

    @abstractmethod
    def fit(self, models: Models, data: Any) -> Merged:
        """Merge with data; every random draw comes from a generator of the strategy's own seed."""


@dataclass
class Merged:
    """The result of a merge in memory.

    Attributes:
        tensors: the shared model.
        parts: per-task strategies: part → tensor → packed codes.
        state: what `survey` found.
        restorers: expert → its own state dict, made on demand; empty where all tasks share one.
        module: strategies that return one; None for a state dict.
        report: plain Python about the merge (coefficients found, …), for result.json.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    state: Any = None
    restorers: dict[str, Callable[[], dict[str, Tensor]]] = field(default_factory=dict)
    module: Any = None
    report: dict[str, Any] = field(default_factory=dict)

    def for_task(self, expert: str) -> dict[str, Tensor]:
        """The weights with which one expert's task is evaluated: its own where the strategy has such, else shared."""
        return self.restorers[expert]() if expert in self.restorers else self.tensors


def refuse(problems: Sequence[Problem]) -> None:
    """Raise what was found, if anything."""
    if problems:
        raise UserError(list(problems))
