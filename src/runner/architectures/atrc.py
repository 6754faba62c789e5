"""ATRC (Brüggemann et al. 2021, arXiv 2104.13874): each pair of tasks attends to a context of its own kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from runner.architectures.decoder import Decoder, Maps
from runner.architectures.heads.layers import Norm, conv_block, normalisation
from runner.architectures.heads.resize import concatenated, upsample
from runner.architectures.relations import Context, Labels, make_context
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeFloat, PositiveInt
from runner.errors import Problem, UserError, suggest
from runner.specs import FeatureSpec
from runner.types import Features

REGIONS = ("target_label", "source_label")


class ATRC(Decoder):
    """Adaptive task-relational context: features of every task refined by attention to all tasks' (figure 2).

    The pyramid's levels are concatenated at the finest one; a 3×3 convolution per task makes its features, another
    branch, cut off from the backbone, its label maps with an auxiliary prediction (`Labels`, supervised). For each
    target task the contexts of all sources, itself among them, are attended to, joined by a 1×1 convolution that starts
    at zero, and mixed with its features. Which context a pair uses is found by `ATRCSearch`; the published
    result for NYUD-v2 stands in `experiment/papers/atrc`, pairs that are not named use `context`.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        channels: width of the tasks' features; None takes a quarter of all levels' together (published). The attention
            has half of it.
        context: of pairs that are not named.
        contexts: target → source → context.
        kernel: side of the local context.
        bins: labels of a regression task.
        dropout: of whole channels of the refined features.
        norm: of the convolutions.
        auxiliary_weight: of the losses of the label maps.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        channels: PositiveInt | None = None,
        context: Literal["none", "global", "local", "target_label", "source_label"] = "target_label",
        contexts: dict[str, dict[str, str]] | None = None,
        kernel: PositiveInt = 9,
        bins: PositiveInt = 40,
        dropout: Fraction = 0.05,
        norm: Literal["batch", "group"] = "batch",
        auxiliary_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(make_backbone, tasks, dense_head, pooled_head, token_head)
        self.auxiliary_weight = auxiliary_weight
        if kernel % 2 == 0:
            raise UserError(f"architecture.kernel={kernel}: a neighbourhood with a centre has an odd side")
        _check(contexts or {}, self.dense)
        spec = self.backbone.spec
        if not self.dense:
            self.make_heads(spec)
            return
        self.strides = spec.strides
        before = sum(spec.channels)
        width = channels or max(before // 4, 1)
        self.contexts: dict[str, dict[str, Context]] = {
            target: {s: (contexts or {}).get(target, {}).get(s, context) for s in self.dense}  # type: ignore[misc]
            for target in self.dense
        }
        self.enter = nn.ModuleDict({t: conv_block(before, width, 3, norm) for t in self.dense})
        self.labels = nn.ModuleDict(
            {
                t: Labels(
                    before,
                    tasks[t].out_channels,
                    getattr(tasks[t], "loss_kind", "regression") == "classification",
                    bins,
                    norm,
                )
                for t in self.dense
                if self._labelled(t)
            }
        )
        self.refine = nn.ModuleDict(
            {t: self.make_refine(t, width, max(width // 2, 1), kernel, dropout, norm) for t in self.dense}
        )
        self.make_heads(FeatureSpec((width,), (self.strides[0],), 0))

    def make_refine(self, target: str, width: int, inner: int, kernel: int, dropout: float, norm: Norm) -> Refine:
        """What refines one target's features."""
        return Refine(self.contexts[target], width, inner, kernel, dropout, norm)

    def _labelled(self, task: str) -> bool:
        """Whether any pair reads the task's label maps."""
        as_target = "target_label" in self.contexts[task].values()
        return as_target or any(by_source[task] == "source_label" for by_source in self.contexts.values())

    def decode(self, features: Features, tasks: Sequence[str]) -> tuple[Maps, Maps]:
        x_BCHW = concatenated(features.pyramid or [], self.strides)
        used = {s for t in tasks for s, kind in self.contexts[t].items() if kind != "none"} | set(tasks)
        own = {t: self.enter[t](x_BCHW) for t in self.dense if t in used}
        apart = x_BCHW.detach()
        labelled = {t: block(apart) for t, block in self.labels.items() if t in used}
        regions = {t: places for t, (places, _) in labelled.items()}
        between: Maps = {}
        if self.supervised and self.auxiliary_weight:
            size = features.size or (0, 0)
            between = {t: [upsample(labelled[t][1], self.strides[0], size)] for t in tasks if t in labelled}
        return {t: [self.refine[t](t, own, regions)] for t in tasks}, between


class Refine(nn.Module):
    """One target's contexts, joined and mixed with its features."""

    def __init__(
        self, contexts: Mapping[str, Context], channels: int, inner: int, kernel: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        self.kinds = {s: kind for s, kind in contexts.items() if kind != "none"}
        self.attend = nn.ModuleDict(
            {s: make_context(kind, channels, inner, norm, kernel) for s, kind in self.kinds.items()}
        )
        count = len(self.kinds)
        self.join: nn.Module | None = self.make_join(count, channels, inner, norm) if count else None
        self.mix = self.make_mix(2 * channels if count else channels, channels, dropout, norm)

    @staticmethod
    def make_join(count: int, channels: int, inner: int, norm: Norm) -> nn.Sequential:
        """All sources' contexts → what is added to the target's features: at first nothing."""
        last = normalisation(norm, channels)
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        return nn.Sequential(nn.Conv2d(count * inner, channels, 1, bias=False), last)

    @staticmethod
    def make_mix(before: int, after: int, dropout: float, norm: Norm) -> nn.Sequential:
        """Features and contexts side by side → refined features."""
        return nn.Sequential(conv_block(before, after, 1, norm), nn.Dropout2d(dropout))

    def attended(self, target: str, features: Mapping[str, Tensor], regions: Mapping[str, Tensor]) -> list[Tensor]:
        """The context of every source, (B, inner, H, W)."""
        return [
            block(features[target], features[s], regions.get(target if self.kinds[s] == "target_label" else s))
            for s, block in self.attend.items()
        ]

    def forward(self, target: str, features: Mapping[str, Tensor], regions: Mapping[str, Tensor]) -> Tensor:
        """Task → (B, C, H, W) and task → (B, L, N) label maps, of those that the contexts read."""
        x_BCHW = features[target]
        if self.join is None:
            return self.mix(x_BCHW)
        attended = self.attended(target, features, regions)
        return self.mix(torch.cat([x_BCHW, self.join(torch.cat(attended, dim=1))], dim=1))


def _check(contexts: Mapping[str, Mapping[str, str]], tasks: Sequence[str]) -> None:
    kinds, where = get_args(Context), "architecture.contexts"
    problems = [Problem(f"unknown task '{where}.{t}'", suggest(t, tasks)) for t in contexts if t not in tasks]
    for target, by_source in contexts.items():
        for source, kind in by_source.items():
            if source not in tasks:
                problems.append(Problem(f"unknown task '{where}.{target}.{source}'", suggest(source, tasks)))
            if kind not in kinds:
                problems.append(Problem(f"'{where}.{target}.{source}' is {kind!r}", suggest(str(kind), kinds)))
    if problems:
        raise UserError(problems)
