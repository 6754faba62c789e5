"""Git Re-Basin by weight matching (Ainsworth et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from runner.config.kinds import NonNegativeInt, PositiveInt
from runner.errors import Problem, UserError
from runner.merging.base import WholeModel
from runner.merging.disk import some
from runner.merging.sources import Models, Source

Group = Mapping[str, int]
"""Tensor → the axis that one permutation acts on."""


@dataclass(kw_only=True)
class ReBasin(WholeModel):
    """Reorder the units of every model like those of the first, then average.

    Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1: for one group of units after the other the
    assignment that maximises Σ ⟨W_A, P W_B⟩ over all tensors the group touches is found (Hungarian method), until no
    group changes. For models that were trained apart; experts of one base are aligned already. Statistics of batch
    normalisation move with their units, and should be estimated again on data afterwards.

    Attributes:
        groups: [{fc1.weight: 0, fc1.bias: 0, fc2.weight: 1}, …]: per group of units every tensor it touches, with the
            axis; units of a residual stream are one group. null: hidden layers of a plain chain of linear layers (or
            convolutions) are found by their shapes.
        rounds_limit: passes over all groups at most.
        seed: of the order in which groups are visited.
    """

    base_use: ClassVar[Any] = "unused"
    experts_min: ClassVar[int] = 2
    structure: ClassVar[bool] = True

    groups: list[dict[str, int]] | None = None
    rounds_limit: PositiveInt = 100
    seed: NonNegativeInt = 0

    def merge_all(self, models: Models, names: Sequence[str]) -> dict[str, Tensor]:
        first, *others = models.experts.values()
        groups = self.groups if self.groups is not None else chain_groups(first, names)
        check_groups(groups, first)
        reference = {name: first.whole(name).float() for name in names}
        weights = self.weights_of(names, len(models.experts))
        total = {name: tensor * weights[name][0] for name, tensor in reference.items()}
        for number, other in enumerate(others, 1):
            aligned = {name: other.whole(name).float() for name in names}
            align(reference, aligned, groups, self.rounds_limit, self.seed)
            for name, tensor in aligned.items():
                total[name] += weights[name][number] * tensor
        return total

    def weights_of(self, names: Sequence[str], count: int) -> dict[str, list[float]]:
        """The coefficients of every tensor."""
        return {name: self.weights_at(name, count) for name in names}


def align(
    reference: Mapping[str, Tensor], model: dict[str, Tensor], groups: Sequence[Group], limit: int, seed: int
) -> None:
    """Permute the units of `model` in place of its entries until every group's assignment to `reference` is best."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(limit):
        changed = False
        for index in torch.randperm(len(groups), generator=generator).tolist():
            group = {name: axis for name, axis in groups[index].items() if name in model}
            if not group:
                continue
            gain = sum(_units(reference[name], axis) @ _units(model[name], axis).T for name, axis in group.items())
            assert isinstance(gain, Tensor)
            order = torch.from_numpy(linear_sum_assignment(gain.double().numpy(), maximize=True)[1])
            before = float(gain.diagonal().double().sum())
            after = float(gain.double()[torch.arange(len(order)), order].sum())
            if after <= before + 1e-9 * max(1.0, abs(before)):
                continue
            changed = True
            for name, axis in group.items():
                model[name] = model[name].index_select(axis, order)
        if not changed:
            return


def _units(tensor: Tensor, axis: int) -> Tensor:
    """A row per unit."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def check_groups(groups: Sequence[Group], source: Source) -> None:
    """Refuse groups that name what is not there, or axes of different length."""
    problems = []
    infos = source.tensors()
    for number, group in enumerate(groups):
        sizes = set()
        for name, axis in group.items():
            if name not in infos:
                problems.append(Problem(f"merge.groups: entry {number} names '{name}', which {source.label} lacks"))
            elif not 0 <= axis < len(infos[name].shape):
                problems.append(
                    Problem(f"merge.groups: '{name}' of shape {list(infos[name].shape)} has no axis {axis}")
                )
            else:
                sizes.add(infos[name].shape[axis])
        if len(sizes) > 1:
            problems.append(Problem(f"merge.groups: entry {number} joins axes of lengths {sorted(sizes)}"))
    if problems:
        raise UserError(problems)


def chain_groups(source: Source, names: Sequence[str]) -> list[dict[str, int]]:
    """The hidden layers of a plain chain: each layer's outputs with its bias and norms are the next one's inputs.

    Raises:
        UserError: the weights make no chain.
    """
    infos = source.tensors()
    order = sorted(names, key=_natural)
    layers = [n for n in order if len(infos[n].shape) >= 2]
    groups = []
    for here, following in pairwise(layers):
        size = infos[here].shape[0]
        if infos[following].shape[1] != size:
            raise UserError(
                f"the units of '{here}' ({size}) are not the inputs of '{following}': the weights are no plain chain",
                "say which tensors share units: merge.groups=[{…: 0, …: 1}]",
            )
        between = order[order.index(here) : order.index(following)]
        vectors = [n for n in order if len(infos[n].shape) == 1 and infos[n].shape[0] == size]
        own = [n for n in vectors if n.rpartition(".")[0] == here.rpartition(".")[0] or n in between]
        groups.append({here: 0, following: 1, **dict.fromkeys(own, 0)})
    if not groups:
        raise UserError(
            f"there is nothing to align: fewer than two layers among {some(list(names))}", "see merge.groups"
        )
    return groups


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 2, and a module's weight before its bias."""
    return [(int(p), "") if p.isdigit() else (-1, {"weight": "0", "bias": "1"}.get(p, p)) for p in name.split(".")]
