"""What a backbone is: inputs → features, once per group.

A backbone is a trunk (a published network, perhaps from a checkpoint) and sometimes a neck: small parts that runner
adds so that the trunk's outputs take the shape heads expect, such as the feature pyramid of a plain ViT. The neck never
comes from a checkpoint, so freezing leaves it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from runner.backbones.checkpointing import checkpoint_modules
from runner.errors import UserError
from runner.specs import FeatureSpec, InputKind, TaskKind
from runner.types import Features


class Backbone(nn.Module):
    """Base of all backbones.

    A subclass sets `spec`, fills `trunk_groups` and `blocks`, and ends its `__init__` with `finish`.

    Attributes:
        input_kind: what it reads, see `runner.specs.InputSpec`.
        serves: kinds of tasks whose features it can make.
        spec: shapes of its features.
        wanted: kinds of tasks whose features `forward` computes; all that it serves until `restrict` is called.
    """

    input_kind: ClassVar[InputKind]
    serves: ClassVar[tuple[TaskKind, ...]]
    spec: FeatureSpec
    trunk: Any

    def __init__(self) -> None:
        super().__init__()
        self.wanted: frozenset[TaskKind] = frozenset(self.serves)
        self._frozen: list[nn.Module] = []

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Features of one group; those that no wanted kind of task reads are None."""
        raise NotImplementedError

    def trunk_groups(self) -> list[list[nn.Module]]:
        """The trunk's modules in layer groups, from input to output; every parameter of the trunk in exactly one."""
        raise NotImplementedError

    def neck_modules(self) -> list[nn.Module]:
        """The parts runner added after the trunk; empty where there are none."""
        return []

    def restrict(self, kinds: Iterable[TaskKind]) -> None:
        """Keep only what tasks of these kinds read; parts that serve nobody are dropped.

        An architecture calls this once, before the optimizer is made, so that every parameter left is one that a
        task's loss can reach.
        """
        wanted = frozenset(kinds)
        if extra := wanted - set(self.serves):
            raise ValueError(f"{type(self).__name__} does not serve {sorted(extra)}, only {self.serves}")
        self.wanted = wanted
        self.drop_unwanted()

    def keep_levels(self, indices: Sequence[int]) -> None:
        """Make some levels of the pyramid only; for backbones that have one."""
        raise NotImplementedError

    def drop_unwanted(self) -> None:
        """Remove the parts that only kinds outside `wanted` read; the base has none."""

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters from input to output, for layer-wise learning rates; the neck, if any, is the last group."""
        groups = [_parameters(modules) for modules in [*self.trunk_groups(), self.neck_modules()]]
        return [group for group in groups if group]

    def freeze(self, frozen: bool | int) -> None:
        """Stop training the trunk (True) or its first `frozen` layer groups.

        Frozen parts also stay in eval mode whatever `train()` is told: no dropout, and BatchNorm keeps and uses its
        stored statistics.

        Raises:
            UserError: there are not that many layer groups.
        """
        groups = self.trunk_groups()
        count = len(groups) if frozen is True else int(frozen)
        if not 0 <= count <= len(groups):
            raise UserError(
                f"backbone.frozen={frozen}: this backbone has {len(groups)} layer groups",
                f"give 0 to {len(groups)}, or true for all of it",
            )
        for group in groups[:count]:
            self.fix(*group)
        if count == len(groups) and hasattr(self, "trunk"):
            self.fix(self.trunk)  # what lies between the groups as well

    def blocks(self) -> list[nn.Module]:
        """The trunk's blocks, of which gradient checkpointing keeps the inputs only."""
        raise NotImplementedError

    def finish(self, frozen: bool | int, gradient_checkpointing: bool) -> None:
        """The last line of every `__init__`: freeze, and checkpoint the blocks where asked to."""
        self.freeze(frozen)
        if gradient_checkpointing:
            checkpoint_modules(self.blocks())

    def fix(self, *modules: nn.Module) -> None:
        """Stop training these modules and keep them in eval mode."""
        for module in modules:
            module.requires_grad_(False)
        self._frozen += modules
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As in `nn.Module`, except that frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for module in modules for p in module.parameters()))
