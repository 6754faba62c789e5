"""Efficient controllable multi-task architectures (Aich, Schulter, Roy-Chowdhury et al. 2023, arXiv 2308.11744)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.architectures.slim import Width, kept, slim
from runner.architectures.width_search import Search, Setting
from runner.backbones.base import Backbone
from runner.backbones.staged import require_stages
from runner.config.kinds import Fraction, NonNegativeFloat, PositiveInt
from runner.errors import UserError
from runner.randomness import forked_rng
from runner.types import Features, Group, Prediction, Supervised, final


class Slimmable(Architecture):
    """Hard sharing whose encoder and decoders can each run at several widths after training.

    Every training step runs the full network and `samples` of its sub-networks, one width for the encoder and one for
    each asked-for decoder: the narrowest of all, then random ones (the sandwich rule of Yu and Huang 2019, arXiv
    1903.05134). The predictions of the sub-networks are trained beside the full network's, by the same losses.
    `wrapper=ci_kd` adds the paper's configuration-invariant distillation. When a run ends, a search translates compute
    budgets and task preferences into widths, as far as `budgets` asks for it (`runner.architectures.width_search`).

    Ours: the sandwich rule, and that BatchNorm keeps statistics for every pair of an encoder's and a decoder's width.
    The paper's encoders are convolutional and shifted-window networks; here it is any backbone of maps whose layers
    are torch's own, in attention the heads stay whole.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        widths: shares of the channels, 1 among them.
        samples: sub-networks of a step.
        sub_weight: of the losses of all sub-networks together, beside those of the full network.
        budgets: shares of the full network's FLOPs to search widths for at the end of a run; none for no search.
        preference: weight of the preferred task in the search, the others sharing the rest.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "maps"

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        widths: list[Fraction],
        samples: PositiveInt = 2,
        sub_weight: NonNegativeFloat = 1.0,
        budgets: list[Fraction],
        preference: Fraction = 0.7,
    ) -> None:
        super().__init__()
        self.backbone = make_backbone()
        check_kinds(self.backbone, tasks)
        require_stages(self.backbone, "Slimmable", maps=True)
        self.backbone.restrict(task.kind for task in tasks.values())
        ratios = _checked(widths)
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbone.spec, task, defaults) for name, task in tasks.items()}
        )
        self.tasks = dict(tasks)
        self.ratios, self.samples, self.sub_weight = ratios, samples, sub_weight
        self.search = Search(budgets, preference)
        self.encoder_width = Width(ratios, follow=True)
        self.head_widths = {name: Width(ratios, follow=False, outer=self.encoder_width) for name in tasks}
        slim(self.backbone, self.encoder_width)
        for name, task in tasks.items():
            slim(self.heads[name], self.head_widths[name], classifier=task.out_channels)
        self._check_layers()
        self.setting = self.full()
        self._seen: list[list[Features]] | None = None

    def full(self) -> Setting:
        """Everything at its full width."""
        return Setting(0, dict.fromkeys(self.tasks, 0))

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Prediction]:
        if not tasks:
            return {}
        if not (self.training and torch.is_grad_enabled()):
            return dict(self._run(group, tasks, self.setting, []))
        seen: list[Features] = []
        whole = self._run(group, tasks, self.full(), seen)
        parts = [self._run(group, tasks, setting, seen) for setting in self._drawn(tasks)]
        if self._seen is not None:
            self._seen.append(seen)
        share = self.sub_weight / self.samples
        if not share:
            return dict(whole)
        return {name: Supervised(made, tuple((share, p[name]) for p in parts)) for name, made in whole.items()}

    def _run(self, group: Group, tasks: Sequence[str], setting: Setting, seen: list[Features]) -> dict[str, Tensor]:
        self.encoder_width.now = setting.encoder
        features = self.backbone(group.inputs)
        self.encoder_width.now = setting.encoder
        seen.append(features)
        predictions = {}
        for name in tasks:
            self.head_widths[name].now = setting.decoders[name]
            predictions[name] = final(self.heads[name](features))
        return predictions

    def _drawn(self, tasks: Sequence[str]) -> Iterator[Setting]:
        """The narrowest sub-network, then random ones."""
        narrowest = len(self.ratios) - 1
        yield Setting(narrowest, dict.fromkeys(tasks, narrowest))
        for _ in range(self.samples - 1):
            encoder, *decoders = torch.randint(len(self.ratios), (1 + len(tasks),)).tolist()
            yield Setting(encoder, dict(zip(tasks, decoders, strict=True)))

    def _check_layers(self) -> None:
        """Refuse widths that a layer cannot tell apart, and backbones that hold channels outside of known layers.

        Raises:
            UserError: see above.
        """
        sizes = {m.num_features for m in self.modules() if isinstance(m, nn.BatchNorm2d)} | set(
            self.backbone.spec.channels
        )
        for size in sizes:
            if len({kept(size, ratio) for ratio in self.ratios}) < len(self.ratios):
                raise UserError(
                    f"architecture.widths={list(self.ratios)} are not all different for a layer of {size} channels",
                    "fewer widths, or a wider backbone",
                )
        was = self.training
        self.eval()
        narrowest = Setting(len(self.ratios) - 1, dict.fromkeys(self.tasks, len(self.ratios) - 1))
        dense = next(self.backbone.parameters())
        try:
            with torch.no_grad(), forked_rng():
                pixels = torch.zeros(1, 3, 64, 64, device=dense.device)
                self._run(Group("probe", {"pixels": pixels}), list(self.tasks), narrowest, [])
        except (RuntimeError, StopIteration, ValueError) as error:
            raise UserError(
                f"Slimmable: {type(self.backbone).__name__} has parts that cannot run at a smaller width "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})",
                "choose resnet, segnet, swin or segformer, and heads of plain convolutions",
                "runner ls backbone",
            ) from error
        finally:
            self.train(was)

    @contextmanager
    def watched(self) -> Iterator[list[list[Features]]]:
        """Inside, the encoder's features of every group: of the full network, then of its sub-networks."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None

    def study(self, measure: Callable[[], Any], cost: Callable[[Sequence[str]], int]) -> dict[str, Any]:
        """The widths that the search finds for every budget and preference, with their validation numbers."""
        if not self.search.budgets:
            return {}
        try:
            return {"controllability": self.search.table(self, measure, cost)}
        finally:
            self.setting = self.full()

    def all_backbones(self) -> list[Backbone]:
        return [self.backbone]


def _checked(widths: Sequence[float]) -> tuple[float, ...]:
    """Widths from 1 down.

    Raises:
        UserError: 1 is not among them, or one is 0 or twice there.
    """
    if 1.0 not in widths or min(widths) <= 0 or len(set(widths)) < len(widths) or len(widths) < 2:
        raise UserError(
            f"architecture.widths={list(widths)}: 1, and at least one smaller share of the channels, each once",
            "such as architecture.widths=[0.25,0.5,0.75,1]",
        )
    return tuple(sorted(map(float, widths), reverse=True))
