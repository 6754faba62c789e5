"""Merge results that are more than one set of weights: modules that evaluate, save, load and resume like any model.

A `MergedModule` is rebuilt from the run's own configuration and the plain values that `plain` gave when it was saved;
its tensors come from the checkpoint. Nothing is imported from a name that a checkpoint holds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.merging.base import Merge, Merged
from runner.merging.decoders import decode, read_by, unpacked
from runner.merging.sources import Models
from runner.types import Group

BODY = "backbone."
"""What is merged begins so; heads stay each expert's own."""
_ORIGIN = "backbone.origin."


def is_body(name: str) -> bool:
    """Whether a tensor is merged."""
    return name.startswith(BODY) and not name.startswith(_ORIGIN)


def body(model: nn.Module) -> dict[str, Tensor]:
    """The merged part of a model's state, copied."""
    return {n: t.detach().clone() for n, t in model.state_dict().items() if is_body(n)}


class MergedModule(nn.Module):
    """Base of results that are modules; has the experts' heads and the call of an architecture.

    Attributes:
        frame: the architecture.
        outside: whether the frame's body gets weights from outside, its own not being used.
    """

    frame: nn.Module
    outside: ClassVar[bool] = False

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predictions by task name, as of an architecture."""
        raise NotImplementedError

    def plain(self) -> dict[str, Any]:
        """What `restore` needs besides the model and the strategy: JSON-able."""
        return {}

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        """The module with unset tensors.

        Args:
            strategy: as configured. model: the architecture. plain: of the saved module.
            shapes: expert → tensors of the shapes that its weights have.
        """
        raise NotImplementedError

    def run(self, tensors: Mapping[str, Tensor], group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        """The frame with given body weights."""
        return torch.func.functional_call(self.frame, dict(tensors), (group, tasks))


Shapes = Mapping[str, Mapping[str, Tensor]]


class Bank(nn.Module):
    """Tensors by dotted name, as buffers of a module: part of its state, moved with it."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(_key(name), tensor.detach().clone())

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, _key(name))

    def items(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) in order."""
        return [(name, self[name]) for name in self.names]


def _key(name: str) -> str:
    return name.replace(".", "/")


def empty(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros of the same shapes."""
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def frame_of(model: nn.Module) -> nn.Module:
    """A copy of an architecture, heads included."""
    return copy.deepcopy(model)


class Switch(MergedModule):
    """Shared weights and codes per task, from which each task gets weights of its own (TALL masks, EMR, …).

    Stored: base, shared weights and packed codes; a task's weights are restored when it is first asked for.

    Args:
        owner: task → its expert, where that has another name.
    """

    outside: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        strategy: Merge,
        experts: Sequence[str],
        base: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        parts: Mapping[str, Mapping[str, Tensor]],
        state: Any,
        owner: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.frame, self.strategy, self.experts, self.state = frame_of(model), strategy, tuple(experts), state
        self.owner = dict(owner or {})
        self.base, self.shared = Bank(base), Bank(shared)
        self.parts = nn.ModuleDict({part: Bank(codes) for part, codes in parts.items()})
        self._at: tuple[str, dict[str, Tensor]] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, strategy: Merge, merged: Merged, models: Models, owner: Mapping[str, str] | None = None
    ) -> Switch:
        """From the result of a merge in memory."""
        assert models.base is not None
        base = {name: models.base.whole(name).float() for name in merged.tensors}
        return cls(model, strategy, models.names, base, merged.tensors, merged.parts, merged.state, owner)

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {task: self.run(self.weights(self.owner.get(task, task)), group, [task])[task] for task in tasks}

    def weights(self, expert: str) -> dict[str, Tensor]:
        """The body weights of one expert's tasks; kept until another one is asked for."""
        if self._at is None or self._at[0] != expert:
            kind, bits = self.strategy.decoder, self.strategy.parts(self.experts)
            assert kind is not None
            found = {}
            for name, shared in self.shared.items():
                banks: Any = self.parts
                codes = {
                    part: unpacked(banks[part][name].cpu(), width, shared.shape, 0, shared.numel()).to(shared.device)
                    for part, width in bits.items()
                    if read_by(part, expert)
                }
                scalars = self.strategy.scalars(name, self.experts, self.state)
                base, flat = self.base[name].reshape(-1), shared.reshape(-1).float()
                found[name] = decode(kind, expert, base, flat, codes, scalars).view(shared.shape)
            self._at = (expert, found)
        return self._at[1]

    def plain(self) -> dict[str, Any]:
        return {"state": self.state, **({"owner": self.owner} if self.owner else {})}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._at = None
        return super()._apply(fn, recurse)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._at = None
        return super().load_state_dict(*arguments, **options)

    @classmethod
    def restore(cls, strategy: Merge, model: nn.Module, plain: Mapping[str, Any], shapes: Shapes) -> MergedModule:
        first = next(iter(shapes.values()))
        floating = {n: t for n, t in first.items() if t.is_floating_point()}
        parts = {
            part: {
                n: torch.zeros(strategy.code_bytes(part, t.shape, tuple(shapes)), dtype=torch.uint8)
                for n, t in floating.items()
            }
            for part in strategy.parts(tuple(shapes))
        }
        experts, zeros = tuple(shapes), empty(floating)
        return cls(model, strategy, experts, zeros, zeros, parts, plain["state"], plain.get("owner"))


def realise(
    merged: Merged, strategy: Merge, model: nn.Module, models: Models, owner: Mapping[str, str] | None = None
) -> nn.Module:
    """The result as something that evaluates: the model with merged weights, or a module.

    Args:
        model: gets the weights. owner: task → its expert, where that has another name.
    """
    if merged.module is not None:
        return merged.module
    if merged.restorers:
        return Switch.of(model, strategy, merged, models, owner)
    own = model.state_dict()
    for name, tensor in merged.tensors.items():
        own[name].copy_(tensor)
    return model


def stored_bytes(final: nn.Module) -> int:
    """What must be kept of a result, heads included."""
    unused = body(final.frame) if isinstance(final, MergedModule) and final.outside else {}
    kept = {n: t for n, t in final.state_dict().items() if n.removeprefix("frame.") not in unused}
    return sum(t.numel() * t.element_size() for t in kept.values())


def rebuild(strategy: Merge, model: nn.Module, plain: Mapping[str, Any] | None, shapes: Shapes) -> nn.Module:
    """What a checkpoint's tensors fit into: the model itself, or the strategy's module."""
    if plain is None:
        return model
    kind: type[MergedModule] = getattr(strategy, "module_type", Switch)
    return kind.restore(strategy, model, plain, shapes).to(next(model.parameters()).device)
