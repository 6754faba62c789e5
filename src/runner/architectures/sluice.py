"""Sluice networks (Ruder, Bingel, Augenstein, Søgaard 2019, arXiv 1705.08142, equations 2 to 4, figure 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.architectures.parallel import ParallelNetworks, own_and_others
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeFloat, PositiveInt
from runner.errors import UserError
from runner.types import Features


class Sluice(ParallelNetworks):
    """Cross-stitch between subspaces of every stage, a learned mixture of stages, and subspaces kept apart.

    - α: each state is cut into subspaces along its channels; a task's next subspaces are linear combinations of all
      subspaces of all tasks.
    - β: a task reads a learned mixture of its stages: dense tasks weigh every level of the pyramid, and where states
      are vectors of one width they are summed. Pooled tasks on images read the last stage, there β has no place.
    - penalty: Σ ‖G_1 G_2ᵀ‖² over pairs of subspaces, where G_s are the rows, of the last weight of each stage, that
      make subspace s: equation 4 for a network of any kind.

    With α the identity and β one (vectors: the last stage alone) these are the single-task networks.

    Args:
        make_backbone: builds one backbone; called once per task.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        subspaces: per task and stage; 2 as published.
        own: α of a subspace on itself at the start.
        orthogonality: weight of the penalty; 0 leaves it out.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        subspaces: PositiveInt = 2,
        own: Fraction = 0.9,
        orthogonality: NonNegativeFloat = 0.01,
    ) -> None:
        super().__init__(make_backbone, tasks, {"dense": dense_head, "pooled": pooled_head, "token": token_head})
        self.subspaces, self.orthogonality = subspaces, orthogonality
        depth = self.depth(list(tasks))
        uneven = [self.channels(i) for i in range(depth) if self.channels(i) % subspaces]
        if uneven:
            raise UserError(
                f"architecture.subspaces={subspaces} does not divide the {uneven[0]} channels of a stage",
                "the published number is 2",
            )
        if orthogonality and subspaces > 1:
            for backbone in self.backbones.values():
                for index, width in enumerate(backbone.stage_channels):
                    _last_weight(backbone.stage_blocks(index), width)
        self.alpha = nn.ParameterList(
            torch.tensor(own_and_others(own, subspaces * len(self.members(i)))) for i in range(depth)
        )
        self.beta = nn.ParameterDict()
        for name, backbone in self.backbones.items():
            if self.kinds[name] == "dense":
                self.beta[name] = torch.ones(len(backbone.spec.channels))
            elif not backbone.spec.channels and len(set(backbone.stage_channels)) == 1:
                self.beta[name] = torch.tensor(own_and_others(own, len(backbone.stage_channels))[-1])

    def exchange(self, index: int, states: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        names, s = self.members(index), self.subspaces
        parts = [part for name in names for part in states[name].chunk(s, dim=1)]
        mixed = {}
        for name in wanted:
            rows = self.alpha[index][names.index(name) * s : (names.index(name) + 1) * s]
            mixed[name] = torch.cat(
                [sum((row[j] * part for j, part in enumerate(parts[1:], 1)), row[0] * parts[0]) for row in rows], dim=1
            )
        return mixed

    def finish_features(self, task: str, features: Features, states: list[Tensor]) -> Features:
        if task in self.beta and features.pyramid is not None:
            levels = zip(self.beta[task], features.pyramid, strict=True)
            features.pyramid = [weight * level_BCHW for weight, level_BCHW in levels]
        elif task in self.beta:
            features.pooled = sum(weight * x_BD for weight, x_BD in zip(self.beta[task], states, strict=True))
        return features

    def penalty(self) -> Tensor | None:
        if not self.orthogonality or self.subspaces == 1:
            return None
        total = torch.zeros((), device=self.alpha[0].device)
        for backbone in self.backbones.values():
            for index, width in enumerate(backbone.stage_channels):
                weight = _last_weight(backbone.stage_blocks(index), width)
                groups = weight.flatten(1).float().chunk(self.subspaces, dim=0)
                for i, left in enumerate(groups):
                    for right in groups[i + 1 :]:
                        total = total + (left @ right.T).square().sum()
        return self.orthogonality * total


def _last_weight(blocks: Sequence[nn.Module], width: int) -> Tensor:
    """The last weight matrix or kernel that makes `width` channels.

    Raises:
        UserError: the state is made by several together, as the branches of HRNet are.
    """
    weights = [p for block in blocks for p in block.parameters() if p.ndim >= 2 and p.shape[0] == width]
    if not weights:
        raise UserError(
            f"architecture.orthogonality needs one layer that makes the {width} channels of a stage, and this backbone "
            "has none",
            "set architecture.orthogonality=0, or choose another backbone such as resnet",
            "runner ls backbone",
        )
    return weights[-1]
