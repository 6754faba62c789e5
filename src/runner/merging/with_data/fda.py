"""Functional dual anchors: inputs made so that their gradients point along task vectors (Shi et al. 2025)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner.config.kinds import PositiveFloat, PositiveInt
from runner.errors import Problem, UserError
from runner.merging.base import DataMerge, Merged
from runner.merging.data import TaskData, take
from runner.merging.sources import Models
from runner.merging.units import Layers, channel_axis, mixes
from runner.merging.with_data.common import base_of, experts_of, generator, inner_rule, merged_by


@dataclass
class Stage:
    """A block of the backbone that is run by itself.

    Attributes:
        path: of the module.
        arguments, keywords: those of a call with one example; the first argument is replaced by anchors.
        names: tensors of the model → names inside the module.
        channels: the axis of its input that a matrix reads.
    """

    path: str
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    names: dict[str, str]
    channels: int

    def __call__(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Its output (the first, if there are several) for anchors, with these weights."""
        own = {inner: tensors[name] for name, inner in self.names.items()}
        rest = tuple(_spread(a, len(x)) for a in self.arguments[1:])
        keywords = {k: _spread(v, len(x)) for k, v in self.keywords.items()}
        out = torch.func.functional_call(self.module, own, (x, *rest), keywords)
        return out if isinstance(out, Tensor) else out[0]


def _spread(value: Any, count: int) -> Any:
    """An argument of one example for several."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return value.expand(count, *value.shape[1:])
    if isinstance(value, tuple):
        return tuple(_spread(v, count) for v in value)
    return value


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def find_stages(data: TaskData, tensors: Mapping[str, Tensor]) -> list[Stage]:
    """The backbone's blocks, or its layers where it has no blocks, with the arguments of one call."""
    backbone: Any = data.model.all_backbones()[0]  # type: ignore[operator]
    layers = Layers(data.model, set(tensors))
    try:
        modules = list(backbone.blocks())
    except (NotImplementedError, AttributeError):
        modules = [m for m in layers.mixing.values() if mixes(m)]
    paths = {m: p for p, m in data.model.named_modules()}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = [
        m.register_forward_pre_hook(
            lambda _, a, k, path=paths[m]: calls.setdefault(path, (a, k)) and None, with_kwargs=True
        )
        for m in modules
    ]
    task = next(iter(data.tasks))
    try:
        with torch.no_grad():
            data.forward(tensors, take(data.unlabelled[task], slice(0, 1)), [task])
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for module in modules:
        path = paths[module]
        names = {n: n.removeprefix(f"{path}.") for n in tensors if n.startswith(f"{path}.")}
        if path not in calls or not names:
            continue
        arguments, keywords = calls[path]
        if not arguments or not isinstance(arguments[0], Tensor) or not arguments[0].is_floating_point():
            continue
        readers = [m for m in module.modules() if mixes(m)]
        found.append(Stage(path, module, arguments, keywords, names, channel_axis(readers[0]) if readers else -1))
    return found


@dataclass(kw_only=True)
class Fda(DataMerge):
    """Task vectors as inputs: anchors X_t per block, then the block is tuned on what experts make of them.

    Shi, Wen, Liu, "Model Merging with Functional Dual Anchors", 2025, block by block as their released code does:

    1. X_t minimises Σ_tensors 1 − cos(−∇_θ D(f(θ₀, X), f(θ_t, X)), τ_t) at θ₀, D the mean squared distance of outputs;
       the anchors start as weight rows of the expert or as noise;
    2. from θ₀ or any merged model, θ follows the gradient of Σ_t D(f(θ, X_t), f(θ_t, X_t)).

    Tensors outside of blocks (embeddings, stems) are those of the start. One real input is run for the shapes; no other
    data are seen.

    Attributes:
        rule: gives the start, a config with a `_target_`; None starts from θ₀.
        anchors: inputs per task and block.
        start: anchors begin as "weights" (rows of the block's first matrix) or "noise".
        spread: root mean square of first anchors.
        anchor_lr, anchor_steps: of Adam on anchors.
        lr, steps: of Adam on weights.
        seed: of first anchors.
    """

    rule: dict[str, Any] | None = None
    anchors: PositiveInt = 16
    start: Literal["weights", "noise"] = "weights"
    spread: PositiveFloat = 1.0
    anchor_lr: PositiveFloat = 1e-2
    anchor_steps: PositiveInt = 100
    lr: PositiveFloat = 1e-4
    steps: PositiveInt = 200
    seed: int = 0

    def check(self, experts: tuple[str, ...], has_base: bool) -> list[Problem]:
        inner = [] if self.rule is None else inner_rule(self.rule).check(experts, has_base)
        return [*super().check(experts, has_base), *inner]

    def fit(self, models: Models, data: TaskData) -> Merged:
        base, experts = base_of(models), experts_of(models)
        merged = dict(base if self.rule is None else merged_by(inner_rule(self.rule), models, data))
        stages = find_stages(data, base)
        if not stages:
            raise UserError("merge=fda: the backbone has no block that reads a tensor", see="runner ls backbone")
        draw = generator(self.seed)
        aligned: dict[str, list[float]] = {"before": [], "after": []}
        distances: dict[str, list[float]] = {"before": [], "after": []}
        with twice_differentiable():
            for stage in stages:
                made = []
                for tensors in experts.values():
                    data.check_stop()
                    x, before, after = self.make(stage, base, tensors, draw)
                    made.append(x)
                    aligned["before"].append(before)
                    aligned["after"].append(after)
                before, after = self.tune(stage, merged, list(experts.values()), made)
                distances["before"].append(before)
                distances["after"].append(after)
        report = {
            "blocks": len(stages),
            "alignment": {k: round(sum(v) / len(v), 4) for k, v in aligned.items()},
            "distance": {k: round(sum(v) / len(v), 7) for k, v in distances.items()},
        }
        return Merged(merged, report=report)

    def make(
        self, stage: Stage, base: Mapping[str, Tensor], expert: Mapping[str, Tensor], draw: torch.Generator
    ) -> tuple[Tensor, float, float]:
        """Anchors of one task and block, and the mean cosine before and after."""
        x = self.first(stage, expert, draw).requires_grad_()
        moved = [n for n in stage.names if bool((expert[n] != base[n]).any())]
        if not moved:
            return x.detach(), 1.0, 1.0
        taus = [expert[n] - base[n] for n in moved]
        adam = torch.optim.Adam([x], lr=self.anchor_lr)
        first = last = 0.0
        for step in range(self.anchor_steps + 1):
            cosines = alignment(stage, base, expert, x, moved, taus)
            last = float(cosines.detach().mean())
            first = last if step == 0 else first
            if step < self.anchor_steps:
                (x.grad,) = torch.autograd.grad((1 - cosines).sum(), [x])
                adam.step()
        return x.detach(), first, last

    def first(self, stage: Stage, expert: Mapping[str, Tensor], draw: torch.Generator) -> Tensor:
        """Where anchors begin."""
        like: Tensor = stage.arguments[0]
        shape = (self.anchors, *like.shape[1:])
        x = torch.randn(shape, generator=draw)
        if self.start == "weights":
            width = like.shape[stage.channels]
            matrix = next((w for n in stage.names if (w := _reads(expert[n], stage, n, width)) is not None), None)
            if matrix is not None:
                rest = x.movedim(stage.channels, -1).shape[:-1]
                rows = torch.randint(len(matrix), rest, generator=draw)
                x = matrix.cpu()[rows].movedim(-1, stage.channels).contiguous()
        x = x / x.square().mean().sqrt().clamp_min(1e-12) * self.spread
        return x.to(like.device)

    def tune(
        self, stage: Stage, merged: dict[str, Tensor], experts: Sequence[Mapping[str, Tensor]], made: Sequence[Tensor]
    ) -> tuple[float, float]:
        """Replace the block's weights in `merged`; returns the mean distance before and after."""
        with torch.no_grad():
            wanted = [stage(tensors, x) for tensors, x in zip(experts, made, strict=True)]
        leaves = {n: merged[n].detach().clone().requires_grad_() for n in stage.names}
        adam = torch.optim.Adam(list(leaves.values()), lr=self.lr)
        found = []
        for step in range(self.steps + 1):
            loss = torch.stack([F.mse_loss(stage(leaves, x), y) for x, y in zip(made, wanted, strict=True)]).sum()
            found.append(float(loss.detach()) / len(made))
            if step < self.steps:
                adam.zero_grad()
                loss.backward(inputs=list(leaves.values()))
                adam.step()
        merged |= {n: t.detach() for n, t in leaves.items()}
        return found[0], found[-1]


def alignment(
    stage: Stage,
    base: Mapping[str, Tensor],
    expert: Mapping[str, Tensor],
    x: Tensor,
    names: Sequence[str],
    taus: Sequence[Tensor],
) -> Tensor:
    """cos(−∇_θ D(f(θ₀, X), f(θ_t, X)), τ_t) per tensor; differentiable in X."""
    leaves = {n: t.detach().requires_grad_(n in names) for n, t in base.items() if n in stage.names}
    distance = F.mse_loss(stage(leaves, x), stage({n: expert[n] for n in stage.names}, x))
    gradients = torch.autograd.grad(distance, [leaves[n] for n in names], create_graph=True, allow_unused=True)
    pairs = [(g, tau) for g, tau in zip(gradients, taus, strict=True) if g is not None]
    return torch.stack([_cosine(-g, tau) for g, tau in pairs])


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of two tensors, safe where the first is 0 and small in any case."""
    a, b = first.flatten().double(), second.flatten().double()
    return (a @ b) / ((a.square().sum() + 1e-60).sqrt() * b.norm().clamp_min(1e-30))


def _reads(weight: Tensor, stage: Stage, name: str, width: int) -> Tensor | None:
    """Rows (N, width) of a matrix that reads inputs of that width; filters are averaged over their window."""
    path = stage.names[name].rpartition(".")[0]
    module = stage.module.get_submodule(path)
    if not mixes(module) or not name.endswith("weight"):
        return None
    matrix = (
        weight.T if type(module).__name__ == "Conv1D" else weight.flatten(2).mean(-1) if weight.dim() > 2 else weight
    )
    return matrix if matrix.shape[1] == width else None
