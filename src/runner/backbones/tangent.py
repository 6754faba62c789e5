"""A backbone in the tangent space of its start (Ortiz-Jimenez et al. 2023, arXiv 2305.12827)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from runner.backbones.base import Backbone
from runner.types import Features


class Tangent(Backbone):
    """f(x; θ₀) + ⟨θ − θ₀, ∇f(x; θ₀)⟩: linear in the parameters θ, so task vectors add up as functions (equation 3).

    Attributes:
        point: the backbone that holds θ; its state has the names of `origin` below it.
        origin: θ₀ as buffers, so that a checkpoint is complete.
    """

    def __init__(self, inner: Backbone) -> None:
        self.input_kind, self.serves = inner.input_kind, inner.serves  # type: ignore[misc]
        super().__init__()
        self.point = inner
        self.origin = _Buffers()
        # Remembered: weights that `functional_call` puts in their place are no leaves that want a gradient.
        self.names = tuple(n for n, p in inner.named_parameters() if p.requires_grad)
        self.spec, self.wanted = inner.spec, inner.wanted
        self.rebase()

    def rebase(self) -> None:
        """Make the present parameters the origin θ₀."""
        for name, parameter in self.point.named_parameters():
            self.origin.put(name, parameter.detach().clone())

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        present = dict(self.point.named_parameters())
        moved = {name: present[name] for name in self.names if name in present}
        if not moved:  # all of it is frozen
            return self.point(inputs)
        origin = {n: self.origin.get(n) for n in moved}
        rest: dict[str, Any] = {}

        def features(parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
            made = torch.func.functional_call(self.point, parameters, (inputs,))
            flat: list[Tensor] = []
            for f in fields(Features):
                value = getattr(made, f.name)
                if isinstance(value, Tensor) and value.is_floating_point():
                    rest[f.name] = len(flat)
                    flat.append(value)
                elif isinstance(value, list):
                    rest[f.name] = range(len(flat), len(flat) + len(value))
                    flat += value
                else:
                    rest[f.name] = _Constant(value)
            return tuple(flat)

        delta = {n: moved[n] - origin[n] for n in moved}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no derivative of this kind
            at_origin, slope = torch.func.jvp(features, (origin,), (delta,))
        flat = [a + b for a, b in zip(at_origin, slope, strict=True)]

        def unpack(place: Any) -> Any:
            if isinstance(place, _Constant):
                return place.value
            return flat[place] if isinstance(place, int) else [flat[i] for i in place]

        return Features(**{name: unpack(place) for name, place in rest.items()})

    def restrict(self, kinds: Any) -> None:
        self.point.restrict(kinds)
        self.wanted = self.point.wanted

    def trunk_groups(self) -> list[list[nn.Module]]:
        return self.point.trunk_groups()

    def neck_modules(self) -> list[nn.Module]:
        return self.point.neck_modules()

    def blocks(self) -> list[nn.Module]:
        return self.point.blocks()


class _Constant:
    """A part of the features that does not depend on the parameters."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Buffers(nn.Module):
    """Tensors by dotted name, as buffers."""

    def put(self, name: str, value: Tensor) -> None:
        self.register_buffer(name.replace(".", "/"), value)

    def get(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "/"))
