"""A base task and sparse deltas for the others (Shoouri, Yang, Fan and Kim 2023, ICCV, arXiv 2303.09663, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.backbones.staged import require_stages
from runner.config.kinds import NonNegativeFloat
from runner.errors import UserError, suggest
from runner.types import Group

LOW, HIGH = -1.5, 1.5
"""Between which gates are stretched before they are cut to [0, 1], as in the released code."""


class BaseSubtask(Architecture):
    """One task has a backbone of its own; every other task has that one plus sparse changes of weights and activations.

        W_t = W_base + z ⊙ δ_t,   z = clip(σ(log u - log(1 - u) + a) (h - l) + l, 0, 1),   u uniform, ½ in evaluation
        x_t ← x_base + (x_t - x_base) ⊙ [|x_t - x_base| ≥ τ]   after every stage

    z is the hard-concrete gate of Louizos et al. 2018 (arXiv 1712.01312), one per weight with its own a; the expected
    number of weights that differ, λ Σ σ(a - log(-l/h)), is added to the loss. Gradients pass the threshold unchanged.
    On hardware that skips zeros only what differs is computed and stored; here everything is computed, and result.json
    says under `sharing` which share of weights and activations a sub-task has of its own.

    Published: the base is trained first (`init=RUN` starts from it) and stays as it is for the others, as here with
    `joint: false`. Ours: the threshold after every stage rather than after every layer, no sharing over video frames,
    sub-tasks trained side by side in one run, and `joint`.

    Args:
        make_backbone: builds one backbone; called once per task.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        base: name of the base task; None takes the first.
        sparsity: λ.
        threshold: τ; 0 shares no activations.
        gate: a at the start.
        joint: whether the sub-tasks' losses train the base's weights as well.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        base: str | None = None,
        sparsity: NonNegativeFloat = 5e-8,
        threshold: NonNegativeFloat = 0.15,
        gate: float = 5.0,
        joint: bool = False,
    ) -> None:
        super().__init__()
        if base is not None and base not in tasks:
            raise UserError(f"architecture.base={base} is no task of the mixture", suggest(base, tasks))
        self.base = base or next(iter(tasks))
        self.kinds = {name: task.kind for name, task in tasks.items()}
        self.sparsity, self.threshold = sparsity, threshold
        backbones = {name: make_backbone() for name in [self.base, *(n for n in tasks if n != self.base)]}
        check_kinds(backbones[self.base], tasks)
        require_stages(backbones[self.base], "BaseSubtask")
        for name, backbone in backbones.items():
            backbone.restrict([self.kinds[name]])
        for name, backbone in backbones.items():
            if name != self.base:
                change(backbone, backbones[self.base], gate, joint)
        self.backbones = nn.ModuleDict({name: backbones[name] for name in tasks})
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict(
            {name: make_head(self.backbones[name].spec, task, defaults) for name, task in tasks.items()}
        )
        self._counted: dict[str, list[float]] | None = None

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        subtasks = [name for name in tasks if name != self.base]
        reference = self._states(self.base, group, [], len(self.backbones[self.base].stage_channels))
        predictions = {}
        for name in tasks:
            states, run = reference if name not in subtasks else self._states(name, group, reference[0])
            features = self.backbones[name].collect(states, run, self.kinds[name])
            predictions[name] = self.heads[name](features)
        return predictions

    def _states(
        self, name: str, group: Group, reference: Sequence[Tensor], depth: int | None = None
    ) -> tuple[list[Tensor], Any]:
        """The states of a task's network after every stage; those of a sub-task are the base's where they are near."""
        backbone = self.backbones[name]
        x, run = backbone.begin(group.inputs)
        states: list[Tensor] = []
        for index in range(depth or len(backbone.stage_channels)):
            x = backbone.stage(index, x, run)[1]
            if index < len(reference):
                x = self._shared(name, x, reference[index])
            states.append(x)
        return states, run

    def _shared(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        if not self.threshold:
            return x
        differs = (x - base).abs() >= self.threshold
        if self._counted is not None:
            self._counted[name][0] += float(differs.sum())
            self._counted[name][1] += differs.numel()
        return x + (torch.where(differs, x, base) - x).detach()

    def penalty(self) -> Tensor | None:
        gates = [m for m in self.modules() if isinstance(m, Delta)]
        if not gates or not self.sparsity:
            return None
        return self.sparsity * torch.stack([m.expected() for m in gates]).sum()

    def study(
        self, measure: Callable[[], Mapping[str, Mapping[str, float]]], cost: Callable[[Sequence[str]], int]
    ) -> dict[str, Any]:
        """Shares of the weights and, over the validation split, of the activations that sub-tasks have of their own."""
        self._counted = {name: [0.0, 0.0] for name in self.kinds}
        try:
            measure()
            counted = self._counted
        finally:
            self._counted = None
        shares = {}
        for name, backbone in self.backbones.items():
            if name == self.base:
                continue
            deltas = [m for m in backbone.modules() if isinstance(m, Delta)]
            total = sum(m.alpha.numel() for m in deltas)
            own, seen = counted[name]
            shares[name] = {
                "weights": sum(m.open() for m in deltas) / total if total else 0.0,
                "activations": own / seen if seen else 1.0,
            }
        return {"sharing": {"base": self.base, "own": shares}}

    def all_backbones(self) -> list[Backbone]:
        """The base's: what the others have is relative to it."""
        return [self.backbones[self.base]]


class Delta(nn.Module):
    """A parametrization: δ → W_base + z ⊙ δ.

    Args:
        base: the base's parameter, which belongs to the base's network.
        gate: a at the start. joint: whether gradients go on to the base.
    """

    def __init__(self, base: nn.Parameter, gate: float, joint: bool) -> None:
        super().__init__()
        self._base = [base]  # in a list: not a parameter of this module
        self.joint = joint
        self.alpha = nn.Parameter(torch.full_like(base, gate))

    def forward(self, delta: Tensor) -> Tensor:
        """W_t."""
        base = self._base[0]
        return (base if self.joint else base.detach()) + self.gates() * delta

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Every sub-task starts as the base."""
        return torch.zeros_like(weight)

    def gates(self) -> Tensor:
        """Gates z, drawn in training."""
        logits = self.alpha
        if self.training:
            u = torch.rand_like(self.alpha).clamp(1e-6, 1 - 1e-6)
            logits = logits + u.log() - (1 - u).log()
        return (logits.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)

    def expected(self) -> Tensor:
        """Expected number of open gates."""
        return (self.alpha - math.log(-LOW / HIGH)).sigmoid().sum()

    @torch.no_grad()
    def open(self) -> int:
        """Number of gates that are open in evaluation."""
        return int((self.alpha.sigmoid() * (HIGH - LOW) + LOW > 0).sum())


class Same(nn.Module):
    """A parametrization: the base's parameter itself, of which nothing is kept here."""

    def __init__(self, base: nn.Parameter) -> None:
        super().__init__()
        self._base = [base]

    def forward(self, nothing: Tensor) -> Tensor:
        """W_base."""
        return self._base[0]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """An empty tensor."""
        return weight.new_zeros(0)


def change(backbone: Backbone, base: Backbone, gate: float, joint: bool) -> None:
    """Make a backbone's parameters changes of the base's, in place; those that are frozen are the base's own.

    Parts that only this one has (a neck, a decoder) stay as they are.
    """
    known = dict(base.named_parameters())
    own = {id(p): name for name, p in backbone.named_parameters()}
    for module in list(backbone.modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            reference = known.get(own[id(parameter)])
            if reference is None:
                continue
            made = Delta(reference, gate, joint) if parameter.requires_grad else Same(reference)
            register_parametrization(module, key, made, unsafe=isinstance(made, Same))
            if isinstance(made, Same):
                module.parametrizations[key].original.requires_grad_(False)  # type: ignore[index,union-attr]
