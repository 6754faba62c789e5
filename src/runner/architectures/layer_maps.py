"""Maps of a backbone's layers, as decoders read them that were made for plain transformers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runner.backbones.base import Backbone
from runner.backbones.plain import PlainTransformer
from runner.backbones.staged import StageRun
from runner.specs import FeatureSpec
from runner.types import Features

WIDE = 4
"""A pyramid of so many levels is read without its finest one."""


def keep_layers(backbone: Backbone) -> FeatureSpec:
    """Shapes of the layers' maps; parts of the backbone that only others would need are dropped.

    Of a plain transformer the tokens after each of its four quarters, all at the stride of a patch (as published); of
    a pyramid its levels, without the finest of four or more: the finest that is read then has a stride of about 8.
    """
    if isinstance(backbone, PlainTransformer):
        backbone.keep_levels([len(backbone.spec.channels) - 1])  # the one level that the neck makes without parameters
        return FeatureSpec(backbone.stage_channels, (backbone.patch,) * len(backbone.stage_channels), 0)
    if (count := len(backbone.spec.channels)) >= WIDE:
        backbone.keep_levels(range(1, count))
    return FeatureSpec(backbone.spec.channels, backbone.spec.strides, 0)


def layer_features(backbone: Backbone, inputs: dict[str, Tensor]) -> Features:
    """As `backbone(inputs)`, with the layers' maps for a pyramid."""
    if not isinstance(backbone, PlainTransformer):
        return backbone(inputs)
    x, run = backbone.begin(inputs)
    states = []
    for index in range(len(backbone.stage_channels)):
        _, x = backbone.stage(index, x, run)
        states.append(x.transpose(1, 2))
    return plain_features(backbone, states, run)


def plain_features(backbone: PlainTransformer, states: Sequence[Tensor], run: StageRun) -> Features:
    """Tokens (B, 1 + N, D) after each quarter → maps (B, D, H, W), the last one normalised, and the pooled vector."""
    states = [*states[:-1], backbone.trunk.layernorm(states[-1])]
    height, width = (-(-side // backbone.patch) for side in run.size or ())
    maps = [x[:, 1:].transpose(1, 2).unflatten(2, run.grid or ())[..., :height, :width] for x in states]
    pooled = backbone.pool(list(states[-1:])) if "pooled" in backbone.wanted else None
    return Features(pyramid=maps if "dense" in backbone.wanted else None, pooled=pooled, size=run.size)
