"""What a merge will write, tensor by tensor, decided from headers alone; everything that does not fit, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from runner.errors import Problem
from runner.merging.base import Arrangement, Merge, refuse
from runner.merging.coefficients import matches
from runner.merging.disk import DTYPE_NAMES, some
from runner.merging.sources import RUNNING, Models, Source, TensorInfo


@dataclass(frozen=True)
class Settings:
    """Keys of `runner merge` that decide what happens to a tensor; `configs/merge.yaml` explains each."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    batchnorm: Literal["keep", "average"] = "keep"


@dataclass(frozen=True)
class Output:
    """One tensor of the result.

    Attributes:
        name: under which it is stored.
        info: shape and type as stored.
        action: "merge" by the strategy, "average" of the experts, or "copy" from the base.
        origin: the tensor it comes from; another name for a tied tensor that the base stores twice.
    """

    name: str
    info: TensorInfo
    action: Literal["merge", "average", "copy"]
    origin: str


@dataclass
class Plan:
    """What is written, from what.

    Attributes:
        models: what is read; tied names resolved.
        outputs: in the order of the base.
        notes: sentences that a person should read before merging.
    """

    models: Models
    outputs: list[Output] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def merged(self) -> list[str]:
        """The tensors that go through the strategy."""
        return list(dict.fromkeys(o.origin for o in self.outputs if o.action == "merge"))

    @property
    def averaged(self) -> list[str]:
        """The tensors that are averaged whatever the strategy."""
        return list(dict.fromkeys(o.origin for o in self.outputs if o.action == "average"))

    def bytes_out(self) -> int:
        """Bytes of the shared result."""
        return sum(o.info.bytes for o in self.outputs)

    def bytes_in(self, merge: Merge) -> int:
        """Bytes that are read."""
        sources = [*self.models.experts.values(), *([self.models.base] if self.models.base else [])]
        once = sum(s.tensors()[n].bytes for s in sources for n in self.merged)
        copied = sum(o.info.bytes for o in self.outputs if o.action == "copy")
        return once * merge.passes() + copied


def make_plan(merge: Merge, models: Models, settings: Settings) -> Plan:
    """Decide what happens to every tensor.

    Raises:
        UserError: with everything that does not fit.
    """
    arranged = isinstance(merge, Arrangement)  # checked with the models it was arranged from
    problems = [] if arranged else list(merge.check(models.names, models.base is not None))
    origin: Source = models.base or next(iter(models.experts.values()))
    plan = Plan(models, notes=[source.note for source in models.experts.values() if source.note])
    others = {label: s for label, s in models.experts.items() if s is not origin}
    missing: dict[str, list[str]] = {}
    shapes: list[Problem] = []
    ties = {label: _ties(origin, source) for label, source in others.items()}
    for name, info in origin.tensors().items():
        first = origin.aliases.get(name, name)
        action = _action(first, info, settings)
        if action != "copy":
            for label, source in others.items():
                theirs = source.tensors().get(ties[label].get(first, first))
                if theirs is None:
                    missing.setdefault(label, []).append(name)
                elif theirs.shape != info.shape:
                    what = f"'{name}' is {list(theirs.shape)} in {label} and {list(info.shape)} in {origin.label}"
                    shapes.append(Problem(what, _shape_hint(theirs.shape, info.shape)))
                elif not theirs.dtype.is_floating_point:
                    kind = DTYPE_NAMES.get(theirs.dtype, str(theirs.dtype))
                    shapes.append(Problem(f"'{name}' is stored as {kind} in {label}: it cannot be merged", _QUANTISED))
        elif not info.dtype.is_floating_point and len(info.shape) > 1 and name.endswith(("weight", "qweight")):
            kind = DTYPE_NAMES.get(info.dtype, str(info.dtype))
            shapes.append(Problem(f"'{name}' is stored as {kind} in {origin.label}: it cannot be merged", _QUANTISED))
        plan.outputs.append(Output(name, _stored(info, settings), action, first))
    problems += shapes[:_SHOWN]
    if len(shapes) > _SHOWN:
        problems.append(Problem(f"{len(shapes) - _SHOWN} more tensors do not fit one another"))
    for label, names in missing.items():
        what = f"{label} lacks {len(names)} tensors that {origin.label} has: {some(names)}"
        problems.append(Problem(what, f"keep those of {origin.label}: 'exclude={_patterns(names)}'"))
    problems += _extra(origin, others, ties, settings, plan)
    if not problems and not plan.merged:
        problems.append(
            Problem("nothing is left to merge", "include and exclude name no tensors that all models share")
        )
    for key in ("include", "exclude"):
        names = [n for s in (origin, *others.values()) for n in s.tensors()]
        for pattern in getattr(settings, key):
            if not any(matches(pattern, n) for n in names):
                problems.append(Problem(f"{key}: no tensor is named '{pattern}'", f"such as '{names[0]}'"))
    names = plan.merged
    for pattern in merge.layers:
        if names and not pattern.startswith("re?:") and not any(matches(pattern, n) for n in names):
            problems.append(Problem(f"merge.layers: no merged tensor is named '{pattern}'", f"such as '{names[0]}'"))
    refuse(problems)
    _tie(plan, ties)
    _say(plan, origin, settings)
    return plan


_SHOWN = 40
_QUANTISED = "quantised weights are no task vectors: give the models in float32, float16 or bfloat16"


def _action(name: str, info: TensorInfo, settings: Settings) -> Literal["merge", "average", "copy"]:
    if not info.dtype.is_floating_point or not info.numel:
        return "copy"
    if settings.include and not any(matches(p, name) for p in settings.include):
        return "copy"
    if any(matches(p, name) for p in settings.exclude):
        return "copy"
    if name.rpartition(".")[2] in RUNNING:
        return "average" if settings.batchnorm == "average" else "copy"
    return "merge"


def _stored(info: TensorInfo, settings: Settings) -> TensorInfo:
    if settings.dtype == "base" or not info.dtype.is_floating_point:
        return info
    return TensorInfo(info.shape, getattr(torch, settings.dtype))


def _shape_hint(theirs: Sequence[int], ours: Sequence[int]) -> str:
    if len(theirs) == len(ours) and theirs[1:] == ours[1:] and len(ours) > 0 and abs(theirs[0] - ours[0]) > 0:
        return "rows of a vocabulary? embed=base cuts to the base's, embed=union joins tokens; a head? exclude it"
    return "they are models of different size; leave single tensors out with exclude=[…]"


def _patterns(names: Sequence[str]) -> str:
    """Names as a short list of patterns: those of one module as `module.*`."""
    modules = list(dict.fromkeys(f"{n.rpartition('.')[0]}.*" if "." in n else n for n in names))
    return f"[{','.join(modules[:4])}{',…' if len(modules) > 4 else ''}]"


def _ties(origin: Source, source: Source) -> dict[str, str]:
    """Names of the base that an expert stores under another name, because they are tied there."""
    found = {}
    for name in origin.tensors():
        if name not in source.tensors():
            partner = origin.aliases.get(name) or next((a for a, b in origin.aliases.items() if b == name), None)
            partner = partner or _twin(origin, name)
            if partner is not None and partner in source.tensors():
                found[name] = partner
    return found


def _twin(source: Source, name: str) -> str | None:
    """Another tensor with the very same values: how a tied weight that was stored twice looks."""
    info = source.tensors()[name]
    if not info.dtype.is_floating_point or len(info.shape) < 2:
        return None
    for other, theirs in source.tensors().items():
        if other == name or theirs != info:
            continue
        probe = min(info.numel, 4096)
        if torch.equal(source.read(name, 0, probe), source.read(other, 0, probe)) and torch.equal(
            source.read(name), source.read(other)
        ):
            return other
    return None


def _extra(
    origin: Source, others: dict[str, Source], ties: dict[str, dict[str, str]], settings: Settings, plan: Plan
) -> list[Problem]:
    """Tensors that experts have and the base lacks: tied ones are dropped, the others must be excluded by the user."""
    problems = []
    for label, source in others.items():
        unknown = [n for n in source.tensors() if n not in origin.tensors() and n not in ties[label].values()]
        dropped = [n for n in unknown if any(matches(p, n) for p in settings.exclude)]
        if dropped:
            plan.notes.append(f"{label}: left out {some(dropped)}, which {origin.label} does not have")
        strange = []
        for name in unknown:
            if name in dropped or name in source.aliases:
                continue
            twin = _twin(source, name)
            if twin is not None and twin in origin.tensors():
                plan.notes.append(f"{label}: {name} is tied to {twin} and not stored again")
            else:
                strange.append(name)
        if strange:
            what = f"{label} has {len(strange)} tensors that {origin.label} lacks: {some(strange)}"
            problems.append(Problem(what, f"leave them out: 'exclude={_patterns(strange)}'"))
    return problems


def _tie(plan: Plan, ties: dict[str, dict[str, str]]) -> None:
    """Let experts answer to the base's names."""
    renamed = {
        label: Renamed(source, ties[label]) if ties.get(label) else source
        for label, source in plan.models.experts.items()
    }
    plan.models = Models(renamed, plan.models.base)


class Renamed(Source):
    """A source under other names: name → name in the source."""

    def __init__(self, source: Source, names: dict[str, str]) -> None:
        self.source, self.names, self.label, self.folder = source, names, source.label, source.folder
        self.aliases = source.aliases

    def tensors(self) -> dict[str, TensorInfo]:
        inner = self.source.tensors()
        return {**inner, **{name: inner[stored] for name, stored in self.names.items()}}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.source.read(self.names.get(name, name), start, stop)

    def close(self) -> None:
        self.source.close()


def _say(plan: Plan, origin: Source, settings: Settings) -> None:
    """Notes on what is not arithmetic."""
    copied = [o.name for o in plan.outputs if o.action == "copy"]
    running = [n for n in copied if n.rpartition(".")[2] in RUNNING]
    integers = [o.name for o in plan.outputs if o.action == "copy" and not o.info.dtype.is_floating_point]
    chosen = [n for n in copied if n not in running and n not in integers]
    if running:
        plan.notes.append(
            f"statistics of {len(running) // 2} batch normalisations are those of {origin.label}: they fit merged "
            "weights badly; batchnorm=average, or estimate them again on data"
        )
    if integers:
        plan.notes.append(f"{len(integers)} integer tensors are copied from {origin.label}: {some(integers)}")
    if chosen:
        plan.notes.append(f"{len(chosen)} tensors are copied from {origin.label}: {some(chosen)}")
