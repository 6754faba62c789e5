"""DSelect-k gates (Hazimeh et al. 2021, arXiv 2106.03760, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.architectures.experts import Expert, Mixer, OnFeatures, Shape, Size, Stream, summary
from runner.architectures.mmoe import GatedExperts
from runner.backbones.base import Backbone
from runner.config.kinds import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from runner.errors import Problem, UserError


class DSelectK(OnFeatures):
    """MMoE whose gates pick at most k experts and are differentiable all the same.

    q = Σ_i softmax(α)_i · r(z_i), where selector r reads the m = log2(E) binary codes of expert numbers from
    smooth-step activations: r(z)_e = Π_j S(z_j) or 1 - S(z_j), as bit j of e is. Once every code is 0 or 1 exactly k
    experts (or fewer, if selectors agree) have a weight.

    Args:
        make_backbone: builds one backbone.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        experts: number of experts, a power of two.
        k: selectors per task.
        gamma: width of the smooth step; a small one decides early.
        per_example: codes and α are linear in the features; False learns them alone, the static gate.
        entropy: weight of the selectors' entropies in the objective, which drives codes to 0 and 1; static gates only.
        hidden: widths of an expert's layers on vectors and tokens.
        channels: of its 1×1 and 3×3 convolution on every map.
        norm: of experts on maps.
        dropout: in experts on vectors and tokens.
    """

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        experts: PositiveInt = 8,
        k: PositiveInt = 2,
        gamma: PositiveFloat = 1.0,
        per_example: bool = True,
        entropy: NonNegativeFloat = 0.0,
        hidden: list[PositiveInt],
        channels: PositiveInt = 128,
        norm: Literal["batch", "group", "none"] = "group",
        dropout: Fraction = 0.0,
    ) -> None:
        problems = []
        if experts & (experts - 1) or experts < 2:
            problems.append(Problem(f"architecture.experts={experts} must be a power of two, 2 or more", "4, 8 or 16"))
        if k > experts:
            problems.append(Problem(f"architecture.k={k} is more than the {experts} experts", f"give 1 to {experts}"))
        if entropy and per_example:
            problems.append(
                Problem(
                    f"architecture.entropy={entropy} regularises static gates, and architecture.per_example is true",
                    "set architecture.per_example=false or architecture.entropy=0",
                )
            )
        if problems:
            raise UserError(problems)

        size = Size(hidden, channels, norm, dropout)

        def make_mixer(shape: Shape, names: list[str]) -> Mixer:
            made = nn.ModuleList(Expert(shape, size) for _ in range(experts))
            gates = {name: DSelectGate(shape, experts, k, gamma, per_example) for name in names}
            return SelectedExperts(made, nn.ModuleDict(gates), entropy)

        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        super().__init__(make_backbone, tasks, defaults, make_mixer, size.after)


class SelectedExperts(GatedExperts):
    """MMoE's mixture with the entropy of its gates as penalty."""

    def __init__(self, experts: nn.ModuleList, gates: nn.ModuleDict, entropy: float) -> None:
        super().__init__(experts, gates)
        self.entropy = entropy

    def penalty(self) -> Tensor | None:
        if not self.entropy:
            return None
        gates: list[Any] = list(self.gates.values())
        return self.entropy * torch.stack([gate.selector_entropy() for gate in gates]).sum()


class DSelectGate(nn.Module):
    """Weights over experts with at most k that are not zero."""

    bits: Tensor

    def __init__(self, shape: Shape, experts: int, k: int, gamma: float, per_example: bool) -> None:
        super().__init__()
        self.kind, self.k, self.gamma, self.per_example = shape.kind, k, gamma, per_example
        self.codes = int(math.log2(experts))
        numbers = torch.arange(experts)
        self.register_buffer("bits", (numbers[:, None] >> torch.arange(self.codes)) & 1 == 1, persistent=False)
        near = gamma / 100  # all codes start close to one half, where the step has its largest slope
        if per_example:
            self.z = nn.Linear(shape.gate_width, k * self.codes)
            self.alpha = nn.Linear(shape.gate_width, k)
            nn.init.uniform_(self.z.weight, -near, near)
            nn.init.uniform_(self.alpha.weight, -0.05, 0.05)
            nn.init.zeros_(self.z.bias)
            nn.init.zeros_(self.alpha.bias)
        else:
            self.z = nn.Parameter(torch.empty(k * self.codes).uniform_(-near, near))
            self.alpha = nn.Parameter(torch.empty(k).uniform_(-0.05, 0.05))

    def forward(self, stream: Stream) -> Tensor:
        """(B, E), for token streams (B, T, E), for static gates (E,)."""
        if self.per_example:
            x = summary(stream, self.kind)
            return self.weights(self.z(x), self.alpha(x))
        return self.weights(self.z, self.alpha)

    def selectors(self, z: Tensor) -> Tensor:
        """Codes (..., k·m) → (..., k, E), each row a distribution over experts."""
        step = smooth_step(z.unflatten(-1, (self.k, self.codes)), self.gamma).unsqueeze(-2)
        return torch.where(self.bits, step, 1.0 - step).prod(-1)

    def weights(self, z: Tensor, alpha: Tensor) -> Tensor:
        """Codes and selector logits → weights over experts."""
        return (alpha.softmax(-1).unsqueeze(-1) * self.selectors(z)).sum(-2)

    def selector_entropy(self) -> Tensor:
        """Σ_i H(r(z_i)) of a static gate."""
        rows = self.selectors(self.z)
        return -torch.special.xlogy(rows, rows.clamp(min=1e-12)).sum()


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """The smooth step: 0 up to -γ/2, 1 from γ/2, a cubic with a smooth slope between."""
    inside = -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5
    return torch.where(t <= -gamma / 2, 0.0, torch.where(t >= gamma / 2, 1.0, inside))
