"""What MMoE, CGC, PLE, DSelect-k, AdaTT and HoME are made of: experts and gates on a backbone's features.

Their papers work on vectors. Here an expert reads whatever a kind of task reads, its "stream": one vector per example,
one per token, or the maps of a pyramid, for which a perceptron becomes a convolution at every level. A gate reads one
vector per example (the mean of the coarsest map) or per token. Tasks of different kinds have no features in common, so
each kind has its own experts on the one backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.architectures.heads.layers import Norm, conv_block
from runner.backbones.base import Backbone
from runner.specs import FeatureSpec, TaskKind
from runner.types import Features, Group

Stream = list[Tensor]
"""Maps (B, C_l, H_l, W_l) of a pyramid, or one tensor (B, D) or (B, T, D)."""


class Shape:
    """Of a stream.

    Attributes:
        kind: of the tasks that read it.
        widths: channels of each of its tensors.
    """

    def __init__(self, kind: TaskKind, widths: Sequence[int]) -> None:
        self.kind, self.widths = kind, tuple(widths)

    @property
    def gate_width(self) -> int:
        """D of what a gate reads, see `summary`."""
        return self.widths[-1]


def summary(stream: Stream, kind: TaskKind) -> Tensor:
    """What a gate reads: (B, D), for token tasks (B, T, D)."""
    return stream[-1].mean((-2, -1)) if kind == "dense" else stream[-1]


def weigh(weights: Tensor, streams: Sequence[Stream]) -> Stream:
    """Σ_e w_e · stream_e for weights (B, E) or, of token streams, (B, T, E); or (E,), the same for all examples."""
    total: Stream = []
    for parts in zip(*streams, strict=True):
        shape = (*weights.shape[:-1], *[1] * (parts[0].ndim - weights.ndim + 1)) if weights.ndim > 1 else ()
        scaled = [weights[..., e].reshape(shape) * part for e, part in enumerate(parts)]
        total.append(sum(scaled[1:], scaled[0]))
    return total


def plus(left: Stream, right: Stream) -> Stream:
    """The sum of two streams."""
    return [a + b for a, b in zip(left, right, strict=True)]


@dataclass(frozen=True)
class Size:
    """Of experts.

    Attributes:
        hidden: widths of the perceptron's layers on vectors and tokens; the last is the output's.
        channels: of the convolutions on maps.
        norm: of those.
        dropout: after every layer of the perceptron.
    """

    hidden: Sequence[int]
    channels: int
    norm: Norm = "group"
    dropout: float = 0.0

    def after(self, shape: Shape) -> Shape:
        """The shape of what such experts make."""
        return Shape(shape.kind, [self.channels if shape.kind == "dense" else self.hidden[-1]] * len(shape.widths))


class Expert(nn.Module):
    """A perceptron with ReLU on vectors; on every map a 1×1 and a 3×3 convolution, each with norm and ReLU."""

    def __init__(self, shape: Shape, size: Size) -> None:
        super().__init__()
        if shape.kind == "dense":
            self.parts = nn.ModuleList(
                nn.Sequential(
                    conv_block(width, size.channels, 1, size.norm),
                    conv_block(size.channels, size.channels, 3, size.norm),
                )
                for width in shape.widths
            )
        else:
            layers: list[nn.Module] = []
            for before, after in pairwise([shape.widths[0], *size.hidden]):
                layers += [nn.Linear(before, after), nn.ReLU(), *([nn.Dropout(size.dropout)] if size.dropout else [])]
            self.parts = nn.ModuleList([nn.Sequential(*layers)])

    def forward(self, stream: Stream) -> Stream:
        return [part(x) for part, x in zip(self.parts, stream, strict=True)]


class Gate(nn.Module):
    """softmax(W x) over experts, as published without a bias."""

    def __init__(self, shape: Shape, experts: int) -> None:
        super().__init__()
        self.kind = shape.kind
        self.out = nn.Linear(shape.gate_width, experts, bias=False)

    def forward(self, stream: Stream) -> Tensor:
        return self.out(summary(stream, self.kind)).softmax(-1)


class Mixer(nn.Module):
    """Experts and gates for the tasks of one kind."""

    def forward(self, stream: Stream, tasks: Sequence[str]) -> dict[str, Stream]:
        """The stream of the backbone → that of each asked-for task."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """A regulariser of the gates; None where there is none."""
        return None


class OnFeatures(Architecture):
    """One backbone, run once per group; per kind of task a mixer between its features and the heads.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        defaults: kind → head config.
        make_mixer: (shape of the backbone's stream, names of the tasks of that kind) → mixer.
        make_shape: shape of the backbone's stream → of the mixer's.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        defaults: Mapping[Any, Mapping[str, Any]],
        make_mixer: Callable[[Shape, list[str]], Mixer],
        make_shape: Callable[[Shape], Shape],
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        self.backbone.restrict(task.kind for task in tasks.values())
        self.kinds: dict[str, Literal["dense", "pooled", "token"]] = {n: t.kind for n, t in tasks.items()}
        spec = self.backbone.spec
        self.mixers = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        specs = {}
        for kind in dict.fromkeys(self.kinds.values()):
            before = Shape(kind, spec.channels if kind == "dense" else (spec.dim,))
            self.mixers[kind] = make_mixer(before, [n for n, k in self.kinds.items() if k == kind])
            widths = make_shape(before).widths
            specs[kind] = FeatureSpec(widths, spec.strides, spec.dim) if kind == "dense" else FeatureSpec(dim=widths[0])
        for name, task in tasks.items():
            self.heads[name] = make_head(specs[task.kind], task, defaults)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        features = self.backbone(group.inputs)
        streams: dict[str, Stream] = {}
        for kind, mixer in self.mixers.items():
            asked = [name for name in tasks if self.kinds[name] == kind]
            if asked:
                streams |= mixer(_stream(features, kind), asked)
        return {name: self.heads[name](_features(features, self.kinds[name], streams[name])) for name in tasks}

    def penalty(self) -> Tensor | None:
        found = [p for mixer in self.mixers.values() if (p := mixer.penalty()) is not None]
        return sum(found[1:], found[0]) if found else None

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


def _stream(features: Features, kind: str) -> Stream:
    if kind == "dense":
        return list(features.pyramid or [])
    found = features.pooled if kind == "pooled" else features.tokens
    return [found] if found is not None else []


def _features(features: Features, kind: str, stream: Stream) -> Features:
    if kind == "dense":
        return Features(pyramid=stream, size=features.size)
    if kind == "pooled":
        return Features(pooled=stream[0], size=features.size)
    return Features(tokens=stream[0], mask=features.mask)
