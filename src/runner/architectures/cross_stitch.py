"""Cross-stitch networks (Misra, Shrivastava, Gupta, Hebert 2016, arXiv 1604.03539, equations 1 and 2, figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.parallel import ParallelNetworks, own_and_others, spread
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction


class CrossStitch(ParallelNetworks):
    """After every stage a task's next state is a learned linear combination of all tasks' states.

    x̃_k = Σ_j α_kj x_j, with an α for every channel (as published) or for every stage. Rows start at `own` for the task
    itself and (1 - own) / (K - 1) for the others. With α the identity these are the single-task networks.

    The published α learn 100 to 1000 times as fast as the network, and the networks start from single-task ones.

    Args:
        make_backbone: builds one backbone; called once per task.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        units: one unit for every channel or for a whole stage.
        own: α of a task on itself at the start.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        units: Literal["channel", "stage"] = "channel",
        own: Fraction = 0.9,
    ) -> None:
        super().__init__(make_backbone, tasks, {"dense": dense_head, "pooled": pooled_head, "token": token_head})
        self.units = nn.ParameterList()
        for index in range(self.depth(list(tasks))):
            start_KK = torch.tensor(own_and_others(own, len(self.members(index))))
            width = self.channels(index)
            self.units.append(start_KK.unsqueeze(-1).repeat(1, 1, width) if units == "channel" else start_KK)

    def exchange(self, index: int, states: dict[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        names, unit = self.members(index), self.units[index]
        mixed = {}
        for name in wanted:
            row = unit[names.index(name)]
            parts = [spread(row[j], states[other]) * states[other] for j, other in enumerate(names)]
            mixed[name] = sum(parts[1:], parts[0])
        return mixed
