"""The structural phases of MTSL: group tasks by similarity, teach a group layer, rewire (Gurulingan et al. 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runner.architectures.mtsl import MTSL as Structure
from runner.config.kinds import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.mixtures.stream import eval_batches
from runner.randomness import forked_rng
from runner.training.wrappers.base import Surroundings, Wrapper
from runner.training.wrappers.features import by_position
from runner.training.wrappers.svd_reweight import Spread
from runner.types import Batch, Group, everything
from runner.weighting.base import LossWeighting, Weighting
from runner.weighting.reach import find_reach
from runner.weighting.step import StepReport


class MTSL(Wrapper):
    """Every `every` steps the next stage of `architecture=mtsl`, from the earliest, is grouped (arXiv 2305.00441).

    Among tasks that share all stages before it, those are grouped whose outputs are alike on training examples, by
    linear CKA (Kornblith et al. 2019, arXiv 1905.00414, equation 5):

        CKA(X, Y) = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖),  columns centred, one row per example and position

    A group's stage starts as the mean of its members', learns to give what they give, Σ_t ‖g(x) - f_t(x)‖² / ‖f_t(x)‖²,
    and takes their place. Training goes on as before in between.

    Ours: complete linkage (every pair of a group is at least `threshold` alike), the mean as the start, and the
    optimizer of the distillation; normalisation keeps its statistics there. Every process does the same on the same
    examples. The weighting must be one of losses, since what is shared changes during the run.

    Args:
        first: steps before the first phase. every: steps between two.
        threshold: smallest CKA of two tasks in a group.
        examples: per data set, evenly spread over it.
        distil_steps: passes over batches of them. lr: of the distillation (Adam).
    """

    architecture: ClassVar[str | None] = "mtsl"
    looks_inside: ClassVar[bool] = True
    changes_structure: ClassVar[bool] = True
    level: Tensor

    def __init__(
        self,
        weighting: Weighting,
        *,
        first: PositiveInt = 200,
        every: PositiveInt = 200,
        threshold: Fraction = 0.7,
        examples: PositiveInt = 64,
        distil_steps: NonNegativeInt = 100,
        lr: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(weighting)
        if not isinstance(weighting, LossWeighting):
            raise UserError(
                f"wrapper=mtsl changes which parameters are shared, and {type(weighting).__name__} works on those",
                "choose a weighting of losses, such as equal, uncertainty or dwa",
                "runner ls weighting",
            )
        self.first, self.every, self.threshold = first, every, threshold
        self.examples, self.distil_steps, self.lr = examples, distil_steps, lr
        self.register_buffer("level", torch.zeros((), dtype=torch.int64))
        self._known_level = 0

    def attach(self, around: Surroundings) -> None:
        super().attach(around)
        self.model: list[Structure] = [around.model]  # type: ignore[list-item]  # in a list: no part of this module

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        [model] = self.model
        since = step - self.first
        if since >= 0 and since % self.every == 0 and int(self.level) < len(model.owner):
            self.phase()
        if self._known_level != int(self.level):  # also after a resume
            self._see_what_is_shared(micro_batches[0][0])
        return super().gradients(micro_batches, counts, step, per_epoch)

    # ---- a structural phase -----------------------------------------------------------------------------------------

    def phase(self) -> None:
        """Group the next stage."""
        [model] = self.model
        index = int(self.level)
        having = [name for name in model.names if model.depths[name] > index]
        groups = list(self._groups())
        owner = model.owner.tolist()
        with evaluating(model):
            for parent in _together(model, owner, index, having):
                for members in self.cluster(self.similarity(parent, index, groups), parent):
                    if len(members) > 1:
                        self._teach(members, index, groups)
                        positions = [model.names.index(name) for name in members]
                        model.owner[index, positions] = positions[0]
        self.level += 1

    def similarity(self, tasks: Sequence[str], index: int, groups: Sequence[Group]) -> Tensor:
        """(K, K) linear CKA between what the tasks' stages give."""
        [model] = self.model
        pairs = list(itertools.combinations_with_replacement(range(len(tasks)), 2))
        sums: dict[tuple[int, int], Tensor] = {}
        means: list[Tensor] = []
        count = 0
        with torch.no_grad():
            for group in groups:
                states, _ = model.states(group, dict.fromkeys(tasks, index + 1))
                rows = [_rows(states[name][index]) for name in tasks]
                count += len(rows[0])
                for a, b in pairs:
                    product = rows[a].T @ rows[b]
                    sums[a, b] = sums[a, b] + product if (a, b) in sums else product
                totals = [x_NC.sum(0) for x_NC in rows]
                means = [m + t for m, t in zip(means, totals, strict=True)] if means else totals
        norms = {}
        for a, b in pairs:
            norms[a, b] = (sums[a, b] - torch.outer(means[a], means[b]) / count).square().sum()
        found = torch.eye(len(tasks), dtype=torch.float64)
        for a, b in pairs:
            found[a, b] = found[b, a] = norms[a, b] / (norms[a, a] * norms[b, b]).sqrt().clamp_min(1e-30)
        return found

    def cluster(self, similarity_KK: Tensor, tasks: Sequence[str]) -> list[list[str]]:
        """Groups in which every pair is alike enough, the most alike joined first."""
        groups = [[k] for k in range(len(tasks))]
        while len(groups) > 1:
            pairs = itertools.combinations(range(len(groups)), 2)
            score, a, b = max(
                ((min(float(similarity_KK[i, j]) for i in groups[p] for j in groups[q]), -p, -q) for p, q in pairs),
            )
            if score < self.threshold:
                break
            groups[-a] = sorted(groups[-a] + groups.pop(-b))
        return [[tasks[k] for k in group] for group in groups]

    def _teach(self, members: Sequence[str], index: int, groups: Sequence[Group]) -> None:
        """Make the first member's stage the group's: the members' mean, then distilled."""
        [model] = self.model
        pupil, targets = model.backbones[members[0]], []
        with torch.no_grad():
            for group in groups:
                states, _ = model.states(group, dict.fromkeys(members, index + 1))
                targets.append([states[name][index] for name in members])
        parts = self._parts(members, index, groups[0])
        with torch.no_grad():
            for tensors in zip(*parts, strict=True):
                tensors[0].copy_(torch.stack([t.detach() for t in tensors]).mean(0))
        learning = [p for p in parts[0] if isinstance(p, nn.Parameter)]
        if not learning:
            return  # frozen
        optimizer = torch.optim.Adam(learning, lr=self.lr)
        with torch.enable_grad():
            for number in range(self.distil_steps):
                at = number % len(groups)
                states, _ = model.states(groups[at], {members[0]: index + 1})
                given = states[members[0]][index]
                loss = torch.stack(
                    [(given - aim).square().sum() / aim.square().sum().clamp_min(1e-12) for aim in targets[at]]
                ).sum()
                grads = torch.autograd.grad(loss, learning)
                for parameter, grad in zip(learning, grads, strict=True):
                    parameter.grad = grad
                optimizer.step()
        for parameter in pupil.parameters():
            parameter.grad = None

    def _parts(self, members: Sequence[str], index: int, group: Group) -> list[list[Tensor]]:
        """For every member, the trainable parameters and float buffers of its stage; the stem belongs to the first."""
        [model] = self.model
        with torch.enable_grad():
            reached = {}
            for name in members:
                states, _ = model.states(group, {name: index + 1})
                before = states[name][index - 1] if index else None
                own = [p for p in model.backbones[name].parameters() if p.requires_grad]
                here = find_reach({"here": [states[name][index]]}, own).reached["here"]
                there = find_reach({"there": [before]}, own).reached["there"] if before is not None else frozenset()
                reached[name] = sorted(here - there)
        parts: list[list[Tensor]] = []
        for name in members:
            backbone = model.backbones[name]
            own = [p for p in backbone.parameters() if p.requires_grad]
            chosen: list[Tensor] = [own[i] for i in reached[members[0]]]
            ids = {id(p) for p in chosen}
            for module in backbone.modules():
                if any(id(p) in ids for p in module.parameters(recurse=False)):
                    chosen += [b for b in module.buffers(recurse=False) if b.is_floating_point()]
            parts.append(chosen)
        return parts

    def _groups(self) -> Iterator[Group]:
        """Training examples, the same on every process."""
        around = self.around
        for dataset in around.train_sets.values():
            chosen = Spread(dataset, self.examples)
            for group in eval_batches(chosen, batch_size=around.batch_size, pad_token_id=around.inputs.pad_token_id):
                yield group.to(around.engine.device)

    def _see_what_is_shared(self, group: Group) -> None:
        """Tell the engine which parameters each task reaches now."""
        [model] = self.model
        engine = self.around.engine
        with evaluating(model), torch.enable_grad():
            one = Group(group.name, {k: v[:1] for k, v in group.inputs.items()}).to(engine.device)
            made = model(one, model.names)
            engine.reach = find_reach({name: everything(made[name]) for name in model.names}, engine.parameters)
        engine.shared = [engine.parameters[i] for i in engine.reach.shared]
        self._known_level = int(self.level)


def _together(model: Structure, owner: Sequence[Sequence[int]], index: int, having: Sequence[str]) -> list[list[str]]:
    """The tasks that have this stage, by whether they share all stages before it."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in having:
        t = model.names.index(name)
        found.setdefault(tuple(owner[i][t] for i in range(index)), []).append(name)
    return [group for group in found.values() if len(group) > 1]


def _rows(state: Tensor) -> Tensor:
    """(B·N, C) float64, a row per example and position."""
    return by_position(state if state.ndim != 3 else state.transpose(1, 2)).transpose(1, 2).flatten(0, 1).double()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and random numbers as they were afterwards."""
    modes: Mapping[Any, bool] = {module: module.training for module in model.modules()}
    model.eval()
    with forked_rng():
        yield
    for module, mode in modes.items():
        module.training = mode
