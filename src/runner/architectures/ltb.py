"""Learning to branch (Guo, Lee, Ulbricht 2020, arXiv 2006.01895, section 3, figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.base import Architecture, check_kinds
from runner.architectures.heads.base import make_head
from runner.backbones.base import Backbone
from runner.backbones.staged import StageRun, require_stages
from runner.config.kinds import NonNegativeInt, PositiveFloat, PositiveInt
from runner.errors import UserError
from runner.types import Features, Group


class LTB(Architecture):
    """A tree of backbone stages, learned with its weights: every node picks the node of the stage before it.

    There are `nodes` copies of every stage. The parent of a node, and the last node of a task, is a categorical
    variable with learned logits. In training it is drawn by the straight-through Gumbel-softmax (one draw per forward
    pass, a single parent forward, the softmax backward); in evaluation it is the likeliest one, and nodes that feed no
    asked-for task do not run. A task's pyramid is that of its own path from the root.

    The first `warmup` passes use all parents equally. After that the temperature of the softmax at pass n is
    max(final_temperature, temperature / √(1 + n / anneal)).

    Args:
        make_backbone: builds one backbone; called once per node.
        tasks: name → task.
        dense_head, pooled_head, token_head: head config for each kind of task that brings none of its own.
        nodes: per stage, not more than there are tasks; None takes one per task.
        temperature, final_temperature, anneal: see above.
        warmup: forward passes.
    """

    needs: ClassVar[Literal["features", "stages", "maps"]] = "stages"
    steps: Tensor

    def __init__(
        self,
        make_backbone: Callable[[], Backbone],
        tasks: Mapping[str, Any],
        *,
        dense_head: dict,
        pooled_head: dict,
        token_head: dict,
        nodes: PositiveInt | None = None,
        temperature: PositiveFloat = 10.0,
        final_temperature: PositiveFloat = 0.1,
        anneal: PositiveInt = 100,
        warmup: NonNegativeInt = 100,
    ) -> None:
        super().__init__()
        self.temperature, self.final_temperature = temperature, final_temperature
        self.anneal, self.warmup = anneal, warmup
        count = nodes or len(tasks)
        if count > len(tasks):
            raise UserError(
                f"architecture.nodes={count} is more than the {len(tasks)} tasks, so that some would never be used",
                f"give 1 to {len(tasks)}, or null for one per task",
            )
        # What follows the last stage (norms, the pyramid of a plain transformer) is that of node k mod N for task k.
        self.collector = {name: str(k % count) for k, name in enumerate(tasks)}
        self.backbones = nn.ModuleDict()
        for node in range(count):
            backbone: Any = make_backbone()
            if node == 0:
                check_kinds(backbone, tasks)
                require_stages(backbone, type(self).__name__)
            # A decoder belongs to the tree, so every node has one if any task reads it.
            everyone = hasattr(backbone, "decoder_stages")
            backbone.restrict(t.kind for n, t in tasks.items() if everyone or self.collector[n] == str(node))
            self.backbones[str(node)] = backbone
        first: Any = self.backbones["0"]
        self.kinds = {name: task.kind for name, task in tasks.items()}
        self.depth = len(first.stage_channels)
        self.unpools = getattr(first, "decoder_stages", 0) > 0
        encoder = self.depth - getattr(first, "decoder_stages", 0)
        self.ends = {name: self.depth if task.kind == "dense" else encoder for name, task in tasks.items()}
        choices = count > 1  # with one node there is nothing to choose
        self.parents = nn.ParameterList(torch.zeros(count, count) for _ in range(self.depth - 1) if choices)
        self.leaves = nn.ParameterDict({name: torch.zeros(count) for name in tasks} if choices else {})
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        defaults = {"dense": dense_head, "pooled": pooled_head, "token": token_head}
        self.heads = nn.ModuleDict({name: make_head(first.spec, task, defaults) for name, task in tasks.items()})

    def passed(self) -> int:
        """Training passes before this one. A look at the device, so once in a pass."""
        return int(self.steps) - (0 if torch.is_grad_enabled() else 1)  # a second look repeats the pass before it

    def choose(self, logits: Tensor, passed: int) -> Tensor:
        """Logits (..., N) → weights over parents, see the class; `passed` counts in training alone."""
        if not self.training:
            soft = logits.softmax(-1)
            hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(soft)
            # Exactly `hard`; the softmax is in the graph because whoever asks what a loss reaches asks in this mode.
            return hard + (soft - soft.detach()) if torch.is_grad_enabled() else hard
        if passed < self.warmup:
            return torch.full_like(logits, 1.0 / logits.shape[-1]) + 0.0 * logits
        temperature = max(self.final_temperature, self.temperature / (1 + (passed - self.warmup) / self.anneal) ** 0.5)
        return F.gumbel_softmax(logits.float(), tau=temperature, hard=True)

    def tree(self) -> dict[str, list[int]]:
        """Task → the likeliest nodes on its way from the first stage to the last."""
        found = {}
        for name in self.heads:
            if not self.leaves:
                found[name] = [0] * self.ends[name]
                continue
            path = [int(self.leaves[name].argmax())]
            for index in reversed(range(self.ends[name] - 1)):
                path.append(int(self.parents[index][path[-1]].argmax()))
            found[name] = path[::-1]
        return found

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Tensor]:
        if not tasks:
            return {}
        passed = self.passed() if self.training and self.leaves else 0
        gates = [self.choose(logits, passed) for logits in self.parents] or [None] * (self.depth - 1)
        leaves = {task: self.choose(self.leaves[task], passed) if self.leaves else None for task in tasks}
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        needed = self._needed(tasks)
        runs: dict[int, StageRun] = {}
        states: list[dict[int, Tensor]] = []
        for index, nodes in enumerate(needed):
            row: dict[int, Tensor] = {}
            for node in nodes:
                backbone: Any = self.backbones[str(node)]
                if index == 0:
                    x, runs[node] = backbone.begin(group.inputs)
                else:
                    x = _mix(gates[index - 1], node, states[-1])
                    runs.setdefault(node, next(iter(runs.values())))  # sizes only: networks that unpool run whole
                row[node] = backbone.stage(index, x, runs[node])[1]
            states.append(row)
        run = next(iter(runs.values()))
        features = {task: self._collect(task, states, gates, leaves[task], run) for task in tasks}
        return {task: self.heads[task](features[task]) for task in tasks}

    def _needed(self, tasks: Sequence[str]) -> list[list[int]]:
        """Nodes per stage that must run: all in training and where a graph is built, else those on a path."""
        depth = max(self.ends[task] for task in tasks)
        if self.training or torch.is_grad_enabled() or self.unpools:
            return [list(range(len(self.backbones)))] * depth
        tree = self.tree()
        paths = [tree[task] for task in tasks]
        return [sorted({path[index] for path in paths if index < len(path)}) for index in range(depth)]

    def _collect(
        self, task: str, states: list[dict[int, Tensor]], gates: Sequence[Any], leaf: Tensor | None, run: StageRun
    ) -> Features:
        """The states on a task's way to the root → its features.

        Away from one-hot choices a state of a path is its expectation: the product of the gates up to that stage.
        """
        weights, path = leaf, []
        for index in reversed(range(self.ends[task])):
            path.append(_mix(weights, None, states[index]))
            if index and weights is not None:
                weights = weights @ gates[index - 1]
        backbone: Any = self.backbones[self.collector[task]]
        return backbone.collect(path[::-1], run, self.kinds[task])

    def all_backbones(self) -> list[Backbone]:
        return list(self.backbones.values())


def _mix(weights: Tensor | None, node: int | None, states: Mapping[int, Tensor]) -> Tensor:
    """Σ_j w_j x_j over the nodes that ran, with row `node` of the weights where they are a matrix."""
    if weights is None:
        return next(iter(states.values()))
    row = weights if node is None else weights[node]
    parts = [row[j] * x for j, x in states.items()]
    return sum(parts[1:], parts[0])
