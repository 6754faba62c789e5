"""What an adapter is: parameters added to a backbone, which itself is frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from runner.backbones.base import Backbone


class Adapter(ABC):
    """Base of all adapters. It holds settings only; what it adds lives in the backbone."""

    @abstractmethod
    def adapt(self, backbone: Backbone) -> None:
        """Freeze the trunk and add the adapter's parameters to it, in place; the function stays what it was.

        Raises:
            UserError: the backbone has nothing of the kind that is to be adapted.
        """

    @abstractmethod
    def plain_name(self, name: str) -> str | None:
        """The name that a tensor of the adapted model has without the adapter; None for the adapter's own tensors."""

    @abstractmethod
    def fold(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of the model without the adapter that computes the same: what it learned goes into the weights."""
