"""The distillation of SAK: every adapter path learns to give its teacher's features (Lu, Cao and Wang 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.teacher import Teacher
from runner.config.kinds import Fraction, NonNegativeFloat, NonNegativeInt
from runner.errors import UserError, suggest
from runner.specs import InputSpec
from runner.training.wrappers.added import AddedLoss
from runner.training.wrappers.run_teacher import RunTeacher, look_for, open_teacher
from runner.types import Batch
from runner.weighting.base import Weighting


class SAKDistill(AddedLoss):
    """α Σ_m Σ_l [β (1 - cos(f_l^m, h_l^m)) + (1 - β) smoothL1(f_l^m, h_l^m)] beside the tasks' losses.

    f_l^m are the maps of path m of `architecture=sak` at its depths l, h_l^m those of teacher m at the same parts of
    its depth (arXiv 2410.14633, section 3.3; α, β and the cosine over all of an image's features as in the released
    code). Maps of different sizes are compared at the larger one. Where a teacher is wider or narrower than the path,
    a 1×1 convolution stands between them, which training keeps and the model does not.

    The paper distils on ImageNet first and then trains tasks and distillation together. `alone` is a first stage on the
    run's own images (ours); a stem from elsewhere comes with `init` or `backbone.pretrained`.

    Args:
        teachers: path → hub id or folder of any image encoder of transformers, or an exported run; null drops one.
        alpha: α. cosine: β.
        alone: steps at the start that only distil.
    """

    architecture: ClassVar[str | None] = "sak"

    def __init__(
        self,
        weighting: Weighting,
        *,
        teachers: dict[str, str | None],
        alpha: NonNegativeFloat = 1.0,
        cosine: Fraction = 0.9,
        alone: NonNegativeInt = 0,
    ) -> None:
        super().__init__(weighting)
        self.names = {name: pretrained for name, pretrained in teachers.items() if pretrained is not None}
        self.alpha, self.cosine, self.alone = alpha, cosine, alone
        self.aligners = nn.ModuleDict()
        self._teachers: dict[str, Teacher | RunTeacher] = {}  # no submodules: a checkpoint does not hold them

    def prepare(self, model: nn.Module, tasks: Mapping[str, Any], inputs: InputSpec) -> None:
        paths = list(getattr(model, "paths", {}))
        if inputs.kind != "image":
            raise UserError("wrapper=sak_distill has teachers for images", "wrapper=none", "runner ls wrapper")
        if set(paths) != set(self.names):
            missing = ", ".join(sorted(set(paths) ^ set(self.names)))
            raise UserError(
                f"wrapper.teachers names {', '.join(self.names) or 'none'}, architecture.paths {', '.join(paths)}: "
                f"{missing} is in one of them only",
                suggest(missing, paths) or f"such as architecture.paths=[{','.join(self.names)}]",
            )
        look_for(self.names)
        device = next(model.parameters()).device
        widths = [model.backbone.stage_channels[index] for index in model.read]  # type: ignore[union-attr,index]
        for name in paths:
            teacher = open_teacher(self.names[name], f"wrapper.teachers.{name}").to(device)
            wanted = [teacher.widths[i] for i in teacher.chosen(len(widths))]
            self._teachers[name] = teacher
            self.aligners[name] = nn.ModuleList(
                nn.Identity() if own == other else nn.Conv2d(own, other, 1)
                for own, other in zip(widths, wanted, strict=True)
            )

    def only(self, step: int) -> bool:
        return step < self.alone

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self.around.model.watched() as self._seen:  # type: ignore[operator]
            yield

    def added(self, batch: Batch) -> Tensor | None:
        total: Tensor | None = None
        for group, paths in zip(batch, self._seen, strict=True):
            pixels = group.inputs["pixels"].to(self.around.engine.device)
            for name, maps in paths.items():
                teacher = self._teachers[name]
                with self.around.forward.autocast():
                    everything = teacher.all_maps(pixels)
                    pairs = zip(self.aligners[name], maps, teacher.chosen(len(maps)), strict=True)  # type: ignore[arg-type]
                    aligned = [(aligner(own), everything[at]) for aligner, own, at in pairs]
                for own_BCHW, other_BCHW in aligned:
                    part = self.distance(own_BCHW.float(), other_BCHW.float()).sum()
                    total = part if total is None else total + part
        return None if total is None else total * (self.alpha / self.total)

    def distance(self, own_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """(B,) of one map to its teacher's."""
        own, other = same_size(own_BCHW, other_BCHW)
        cosine_B = F.cosine_similarity(own.flatten(1), other.flatten(1))
        smooth_B = F.smooth_l1_loss(own, other, reduction="none").flatten(1).mean(1)
        return self.cosine * (1 - cosine_B) + (1 - self.cosine) * smooth_B


def same_size(one_BCHW: Tensor, other_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller of two maps resized to the larger, bilinearly."""
    if one_BCHW.shape[-2:] == other_BCHW.shape[-2:]:
        return one_BCHW, other_BCHW
    size = max((x.shape[-2:] for x in (one_BCHW, other_BCHW)), key=lambda sides: sides[0] * sides[1])
    made: list[Tensor] = [
        F.interpolate(x, size=size, mode="bilinear", align_corners=False) if x.shape[-2:] != size else x
        for x in (one_BCHW, other_BCHW)
    ]
    return made[0], made[1]
