"""A multi-layer perceptron for tables.

The plain MLP of Gorishniy et al. 2021 (arXiv 2106.11959, section 3.1): a strong baseline for tabular data; categorical
columns enter through embeddings (Guo and Berkhahn 2016, arXiv 1604.06737).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.backbones.staged import StageRun
from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec, TaskKind
from runner.types import Features

PRESETS = {"tiny": (32, 2), "small": (128, 2), "base": (256, 3), "large": (512, 4)}
"""size → (width, number of hidden layers)."""


class MLP(Backbone):
    """numeric (B, F) and categorical (B, C) columns → pooled (B, D).

    Layer groups: embeddings (where there are categorical columns), then one per hidden layer.
    """

    input_kind = "table"
    serves = ("pooled",)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "small", "base", "large"] = "small",
        frozen: bool | NonNegativeInt = False,
        embedding_dim: PositiveInt | None = None,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if inputs.kind != "table":
            raise UserError(f"this backbone reads tables, the mixture feeds it {inputs.kind}", see="runner ls backbone")
        self.embeddings = nn.ModuleList(
            nn.Embedding(values, embedding_dim or min(50, (values + 1) // 2)) for values in inputs.cardinalities
        )
        width, depth = PRESETS[size]
        self.num_numeric = inputs.num_numeric
        sizes = [self.entry_channels()] + [width] * depth
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)) for before, after in pairwise(sizes)
        )
        self.spec = FeatureSpec(dim=width)
        self.finish(frozen, gradient_checkpointing=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Features of `inputs["numeric"]` and `inputs["categorical"]`; an absent kind of column has no key."""
        x_BD, _ = self.begin(inputs)
        for layer in self.layers:
            x_BD = layer(x_BD)
        return Features(pooled=x_BD)

    def entry_channels(self) -> int:
        """All columns, embedded."""
        return self.num_numeric + sum(e.embedding_dim for e in self.embeddings)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """A stage per hidden layer."""
        return (self.spec.dim,) * len(self.layers)

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """As after each stage."""
        return self.stage_channels

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """None: states are vectors (B, D)."""
        return ()

    def begin(self, inputs: dict[str, Tensor]) -> tuple[Tensor, StageRun]:
        """Columns → what the first hidden layer reads."""
        parts = [inputs["numeric"]] if self.num_numeric else []
        if len(self.embeddings):
            parts += [embed(column_B) for embed, column_B in zip(self.embeddings, inputs["categorical"].T, strict=True)]
        return torch.cat(parts, dim=1), StageRun()

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        """One hidden layer; it is its own last block."""
        x_BD = self.layers[index](x)
        return x_BD, x_BD

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The hidden layer."""
        return [self.layers[index]]

    def collect(self, states: list[Tensor], run: StageRun, kind: TaskKind | None = None) -> Features:
        """The last state is the pooled vector."""
        return Features(pooled=states[-1])

    def trunk_groups(self) -> list[list[nn.Module]]:
        first = [[self.embeddings]] if len(self.embeddings) else []
        return first + [[layer] for layer in self.layers]
