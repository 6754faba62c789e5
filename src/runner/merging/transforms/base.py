"""What changes of task vectors are: steps before (`pre`) or after (`post`) a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from runner.config.build import build
from runner.errors import Problem
from runner.merging.blocks import Block, Look, Unit


@dataclass(kw_only=True)
class Transform(ABC):
    """A change of task vectors before (`pre`) or after (`post`) the rule. Its fields are its config keys.

    Attributes:
        unit: the pieces it must see.
    """

    unit: ClassVar[Unit] = "element"

    def survey(self, look: Look) -> Any:
        """What it must know of the whole model, as plain Python."""
        return None

    def check(self, experts: int) -> list[Problem]:
        """What does not fit the number of experts."""
        return []

    @abstractmethod
    def apply(self, tau: Tensor, block: Block, index: int, state: Any) -> Tensor:
        """The changed task vector; `tau` may be written to. `index` is -1 for the merged one in `post`."""


Transforms = list[Any] | dict[str, Any]
"""Configs with a `_target_` (or built ones), as a list or by name; applied in order."""


def make_transforms(given: Transforms, where: str) -> list[Transform]:
    """Build the entries of `pre` or `post`."""
    items = given.items() if isinstance(given, Mapping) else enumerate(given)
    return [t if isinstance(t, Transform) else build(t, where=f"{where}.{key}") for key, t in items]
