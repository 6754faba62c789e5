"""Backbones that can be driven stage by stage, so that an architecture can work on what passes between stages.

    x, run = backbone.begin(inputs)
    states = []
    for index in range(len(backbone.stage_channels)):
        inner, x = backbone.stage(index, x, run)
        x = ...                                      # mix it with another backbone's, attend to it, …
        states.append(x)
    features = backbone.collect(states, run)

With nothing done in between this is `backbone(inputs)`. A state is (B, C), (B, C, T) or (B, C, H, W): channels are
always the second dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.errors import UserError
from runner.specs import TaskKind
from runner.types import Features


@dataclass
class StageRun:
    """What one pass through the stages of one backbone remembers.

    Attributes:
        size: (H, W) of the image; None for other inputs.
        grid: (rows, columns) of patches of a plain transformer.
        switches: positions of the maxima of every pooling layer, for networks that unpool (SegNet).
    """

    size: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    switches: list[Tensor] = field(default_factory=list)


@runtime_checkable
class Staged(Protocol):
    """What such a backbone has besides the methods of `Backbone`.

    Attributes:
        stage_channels: C of the state after each stage that serves a wanted kind of task.
        inner_channels: C of the inner map of each stage, see `stage`.
        stage_strides: input pixels per cell of that state; empty where states are no maps.
    """

    @property
    def stage_channels(self) -> tuple[int, ...]: ...

    @property
    def inner_channels(self) -> tuple[int, ...]: ...

    @property
    def stage_strides(self) -> tuple[int, ...]: ...

    def entry_channels(self) -> int:
        """C of what the first stage reads. No property: it may look by a forward pass, and `isinstance` reads those."""

    def begin(self, inputs: dict[str, Tensor]) -> tuple[Tensor, StageRun]:
        """Inputs → what the first stage reads."""

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        """One stage: (what enters its last block, its output); the output twice where it has one block."""

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The blocks of a stage, from input to output."""

    def collect(self, states: list[Tensor], run: StageRun, kind: TaskKind | None = None) -> Features:
        """The states after every stage → features, as `forward` makes them.

        With a kind only those that tasks of that kind read; a decoder's states may then be missing for pooled tasks.
        """


def require_stages(backbone: Backbone, method: str, maps: bool = False) -> None:
    """Refuse a backbone whose stages cannot be run one by one.

    Args:
        method: the architecture that needs it, for the message.
        maps: whether its states must be maps (B, C, H, W).

    Raises:
        UserError: it has no stages, or none of the wanted form.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, Staged):
        raise UserError(
            f"{method} works between the stages of a backbone, and {name} cannot be run stage by stage",
            "for text choose an architecture that works on features: mmoe, cgc, ple, dselect_k, adatt, home",
            "runner ls architecture",
        )
    if maps and not backbone.stage_strides:
        raise UserError(
            f"{method} attends to feature maps between stages, and the states of {name} are no maps",
            "choose a pyramid backbone: resnet, segnet, hrnet, swin, segformer, pvt_v2, convnext",
            "runner ls backbone",
        )


def through(
    blocks: Iterable[Any], x: Tensor, call: Callable[[Any, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Blocks one after the other: (what enters the last block, its output); the output twice where there is one.

    Args:
        call: how a block is called; by default with the state alone.
    """
    inner, count = x, 0
    for block in blocks:
        inner, count = x, count + 1
        x = call(block, x) if call is not None else block(x)
    return (inner if count > 1 else x), x
