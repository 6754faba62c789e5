"""The shared representation, as the backbone hands it to the heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from runner.errors import UserError
from runner.types import Features


class FeatureTap:
    """Remembers what the one backbone of a model gives, one entry per group, while `watching`.

    Args:
        model: has `all_backbones()`.
        wrapper: who needs it, for the message.

    Raises:
        UserError: the tasks do not share one backbone.
    """

    def __init__(self, model: nn.Module, wrapper: str) -> None:
        self.wrapper, self.architecture = wrapper, type(model).__name__
        self.seen: list[Features] = []
        self._on = False
        only_backbone(model, wrapper).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Features) -> None:
        if self._on:
            self.seen.append(output)
            for tensor in candidates(output):
                if not tensor.requires_grad and tensor.is_leaf:  # a frozen backbone
                    tensor.requires_grad_()

    @contextmanager
    def watching(self) -> Iterator[list[Features]]:
        """The features of every group that goes through the model inside.

        Raises:
            UserError: the architecture drives the backbone stage by stage, and there are no such features.
        """
        self.seen, self._on = [], True
        try:
            yield self.seen
        finally:
            self._on = False
        if not self.seen:
            raise UserError(
                f"wrapper={self.wrapper} needs one representation that the tasks share, and {self.architecture} makes "
                "each task's own between the stages of the backbone",
                "architecture=hard_sharing, or wrapper=none",
                "runner ls architecture",
            )


def only_backbone(model: nn.Module, wrapper: str) -> nn.Module:
    """The one backbone of an architecture.

    Raises:
        UserError: there are several.
    """
    backbones = model.all_backbones()  # type: ignore[operator]
    if len(backbones) != 1:
        raise UserError(
            f"wrapper={wrapper} needs one representation that the tasks share, "
            f"this architecture has {len(backbones)} backbones",
            "architecture=hard_sharing, or wrapper=none",
            "runner ls architecture",
        )
    return backbones[0]


def candidates(features: Features) -> list[Tensor]:
    """What tasks may read, most abstract first: pyramid levels from coarse to fine, tokens, pooled."""
    pyramid = list(reversed(features.pyramid or []))
    return pyramid + [t for t in (features.tokens, features.pooled) if t is not None]


def by_position(z: Tensor) -> Tensor:
    """(B, C, H, W), (B, T, C) or (B, C) as (B, C, N) with N positions."""
    if z.ndim == 4:
        return z.flatten(2)
    return z.transpose(1, 2) if z.ndim == 3 else z.unsqueeze(2)
