"""ZipIt!: units that say the same become one, within and across models (Stoica et al. 2023); also re-basin on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.config.kinds import Fraction, PositiveInt
from runner.errors import UserError
from runner.merging.base import DataMerge, Merge, Merged
from runner.merging.data import TaskData, take
from runner.merging.modules import Bank, MergedModule, Shapes, empty, frame_of
from runner.merging.sources import RUNNING, Models
from runner.merging.units import UnitGroup, find_units
from runner.merging.with_data.common import base_of, experts_of
from runner.merging.with_data.zipping import correlations, matrices, permutations, zipped
from runner.types import Features, Group


class ZippedModule(MergedModule):
    """Layers that all tasks share, layers of each task, and features given back to each expert's own order.

    Attributes:
        unmerge: U of the features (T, D, D); the identity where heads read no units that were joined.
    """

    unmerge: Tensor

    def __init__(
        self,
        model: nn.Module,
        shared: Mapping[str, Tensor],
        own: Mapping[str, Mapping[str, Tensor]],
        unmerge: Tensor | None,
        dim: int,
    ) -> None:
        super().__init__()
        self.frame, self.tasks = frame_of(model), tuple(own)
        self.shared = Bank(shared)
        self.own = nn.ModuleDict({task: Bank(tensors) for task, tensors in own.items()})
        self.register_buffer("unmerge", torch.eye(dim).repeat(len(own), 1, 1) if unmerge is None else unmerge)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {task: self.one(group, task) for task in tasks}

    def one(self, group: Group, task: str) -> Tensor:
        """Predictions of one task."""
        back_DD = self.unmerge[self.tasks.index(task)]
        heads: Any = self.frame.heads
        handle = heads[task].register_forward_pre_hook(lambda _, a: (given_back(a[0], back_DD), *a[1:]))
        try:
            return self.run(self.tensors(task), group, [task])[task]
        finally:
            handle.remove()

    def tensors(self, task: str) -> dict[str, Tensor]:
        """The body of one task: the buffers themselves."""
        own: Any = self.own[task]
        return {**dict(self.shared.items()), **dict(own.items())}

    def plain(self) -> dict[str, Any]:
        own: Any = self.own[self.tasks[0]]
        return {"shared": list(self.shared.names), "own": list(own.names), "dim": self.unmerge.shape[1]}

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        likes = {**model.state_dict(), **next(iter(shapes.values()))}
        shared = empty({n: likes[n] for n in plain["shared"]})
        own = {task: empty({n: likes[n] for n in plain["own"]}) for task in shapes}
        return cls(model, shared, own, None, plain["dim"])


def given_back(features: Features, back_DD: Tensor) -> Features:
    """Features z as an expert's own: U z."""
    pooled = None if features.pooled is None else features.pooled @ back_DD.T
    tokens = None if features.tokens is None else features.tokens @ back_DD.T
    return replace(features, pooled=pooled, tokens=tokens)


@dataclass(kw_only=True)
class ZipIt(DataMerge):
    """W* = Σ_t M_t^out W_t U_t^in: every layer writes averages of matched units, and reads them as copies.

    Stoica, Bolya, Bjorner, Hearn, Hoffman, "ZipIt! Merging Models from Different Tasks without Training", 2023:
    units of all models are compared by the correlation of their activations on inputs of all tasks, and joined within
    models as well as across until there are as many as one model has (section 4). Layers after `depth` stay each
    task's own and read unmerged units. Heads read what is given back to their expert's units, so that models need not
    have a common start. The running statistics of BatchNorm are estimated again, on the tasks whose data pass a layer.
    With match=permute units are matched one to one with the first model's: Git Re-Basin's activation matching
    (Ainsworth et al. 2023, section 3.1). Which tensors share units is found out by `runner.merging.units`; tensors of
    no such units are averaged.

    Attributes:
        match: "zip" within and across models, or "permute" one to one across them.
        depth: share of the groups of units, from the input on, that are joined.
        repeat: α, see `zipping.zipped`.
        within: β, see there.
        examples: inputs per task that are looked at.
        statistics: whether BatchNorm's are estimated again; else they are averaged like other vectors.
        batch_size: examples per forward pass.
    """

    returns: ClassVar[Any] = "module"
    base_use: ClassVar[Any] = "optional"
    ignores: ClassVar[tuple[str, ...]] = ("pre", "weights", "normalize", "layers")
    module_type: ClassVar[type[MergedModule]] = ZippedModule

    match: Literal["zip", "permute"] = "zip"
    depth: Fraction = 1.0
    repeat: Fraction = 0.3
    within: Fraction = 0.125
    examples: PositiveInt = 200
    statistics: bool = True
    batch_size: PositiveInt = 100

    def fit(self, models: Models, data: TaskData) -> Merged:
        experts = experts_of(models)
        statistics = statistics_of(models, data.model)
        full = {task: {**tensors, **statistics[task]} for task, tensors in experts.items()}
        first = next(iter(full.values()))
        names = set(next(iter(experts.values())))
        groups = find_units(data, base_of(models) | statistics[next(iter(experts))] if models.base else first, names)
        if not groups:
            raise UserError(
                "merge: no units of the backbone can be matched",
                "GroupNorm and attention heads tie them together: take a backbone with BatchNorm or LayerNorm",
                "runner ls backbone",
            )
        order = [g.writers[0] for g in groups]
        chosen = closed(groups[: round(self.depth * len(groups))], groups)
        cut = next((g.writers[0] for g in groups if g not in chosen), None)
        found = correlations(full, chosen, data, self.examples, self.batch_size)
        count = len(experts)
        matched = [
            permutations(c, count) if self.match == "permute" else zipped(c, count, self.repeat, self.within)
            for c in found
        ]
        pairs = [matrices(clusters, count) for clusters in matched]
        shared, own = combined(full, chosen, pairs, groups, self.late(data, cut, set(first)))
        headed = next((n for n, g in enumerate(chosen) if g.headed), None)
        dim = data.model.all_backbones()[0].spec.dim  # type: ignore[operator]
        unmerge = None if headed is None else pairs[headed][1]
        module = ZippedModule(data.model, shared, own, unmerge, dim).to(data.device).eval()
        reset = self._reset(module, data) if self.statistics else 0
        kept = [
            float(torch.stack([c[m] for m in same(clusters)]).mean())
            for c, clusters in zip(found, matched, strict=True)
        ]
        report = {"groups": len(groups), "joined": len(chosen), "correlation": round(sum(kept) / max(1, len(kept)), 4)}
        return Merged(module=module, report={**report, "first": order[:3], "statistics": reset})

    def late(self, data: TaskData, cut: str | None, names: set[str]) -> set[str]:
        """Tensors of modules from the one named `cut` on, in the order of the model's definition."""
        ordered = [n for n in data.model.state_dict() if n in names]
        if cut is None:
            return set()
        return set(ordered[ordered.index(f"{cut}.weight") :])

    @torch.no_grad()
    def _reset(self, module: ZippedModule, data: TaskData) -> int:
        """Estimate BatchNorm's statistics again; returns the number of layers."""
        norms = [m for m in module.frame.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        before = [(m.training, m.momentum) for m in norms]
        for norm in norms:
            norm.train()
            norm.momentum = None  # the mean over all batches
        try:
            for task in module.tasks if norms else ():
                few = take(data.unlabelled[task], slice(0, self.examples))
                for begin in range(0, len(few), self.batch_size):
                    module.one(take(few, slice(begin, begin + self.batch_size)), task)
        finally:
            for norm, (training, momentum) in zip(norms, before, strict=True):
                norm.train(training)
                norm.momentum = momentum
        return len(norms)


def statistics_of(models: Models, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Expert → running statistics of its norms, of which counters start again."""
    wanted = [n for n in model.state_dict() if n.startswith("backbone.") and n.rpartition(".")[2] in RUNNING]
    found = {}
    for expert, source in models.experts.items():
        own = {n: source.whole(n).clone() for n in wanted if n in source.tensors()}
        found[expert] = {n: torch.zeros_like(t) if "num_batches" in n else t for n, t in own.items()}
    return found


def closed(chosen: Sequence[UnitGroup], groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """The groups whose writers read nothing but joined units: what a layer writes for all, it must read from all."""
    kept = list(chosen)
    while True:
        still = [g for g in kept if all(r in kept for r in groups if set(r.readers) & set(g.writers))]
        if len(still) == len(kept):
            return kept
        kept = still


def combined(
    experts: Mapping[str, Mapping[str, Tensor]],
    chosen: Sequence[UnitGroup],
    pairs: Sequence[tuple[Tensor, Tensor]],
    groups: Sequence[UnitGroup],
    late: set[str],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Tensors that all tasks share, and those of each task.

    Args:
        pairs: M and U of every chosen group.
        late: tensors that stay the tasks' own unless they write joined units.
    """
    count = len(experts)
    shared: dict[str, Tensor] = {}
    own: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
    for name, like in next(iter(experts.values())).items():
        joined = [(g, pair) for g, pair in zip(chosen, pairs, strict=True) if name in g.axes]
        writes = [(g.axes[name], m) for g, (m, _) in joined if name.rpartition(".")[0] not in g.readers]
        reads = [(g.axes[name], u) for g, (_, u) in joined if name.rpartition(".")[0] in g.readers]
        other = any(name in g.axes and name.rpartition(".")[0] not in g.readers for g in groups if g not in chosen)
        parts = []
        for t, tensors in enumerate(experts.values()):
            tensor = tensors[name]
            for axis, unmerge in reads:  # the input side: W U
                tensor = along(tensor, axis, unmerge[t].T)
            parts.append(tensor)
        if other or (name in late and not writes):
            for task, part in zip(experts, parts, strict=True):
                own[task][name] = part
        elif not like.is_floating_point():
            shared[name] = like
        elif writes:
            ((axis, merge),) = writes
            shared[name] = torch.stack([along(p, axis, merge[t]) for t, p in enumerate(parts)]).sum(0)
        else:
            shared[name] = torch.stack(parts).sum(0) / count
    return shared, own


def along(tensor: Tensor, axis: int, matrix_AB: Tensor) -> Tensor:
    """A matrix applied along one axis."""
    return torch.tensordot(matrix_AB.to(tensor), tensor, dims=([1], [axis])).movedim(0, axis)


def same(clusters_U: Tensor) -> list[tuple[int, int]]:
    """Pairs of units that were joined: every unit with the first of its cluster."""
    first: dict[int, int] = {}
    pairs = []
    for unit, cluster in enumerate(clusters_U.tolist()):
        if cluster in first:
            pairs.append((first[cluster], unit))
        else:
            first[cluster] = unit
    return pairs
