"""The pieces of an autograd graph between its cuts: where each begins, what is in it, in which order they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from runner.weighting.cut import Cut


@dataclass
class Piece:
    """A part of the graph that ends at a cut (or at the losses) and begins at earlier cuts and at parameters.

    Attributes:
        cut: where it ends; None for the losses.
        sources: the cuts it begins at.
        parameters: the engine's parameters in it.
        linear: the layer and its input (N, I), if the piece is one linear layer.
    """

    cut: Cut | None
    sources: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    linear: tuple[nn.Linear, Tensor] | None = None


@dataclass
class _Seen:
    """A node between cuts: the pieces it is in (bits of an integer), and the nodes that follow it."""

    inside: int = 0
    after: set[Any] = field(default_factory=set)
    single: bool = True  # whether it has one output


class Pieces:
    """Completes pieces whose ends are known, and cuts the graph again where several of them run together.

    A residual stream is read by every block after it: without cuts of its own the first of these hands a gradient to
    all branches before it at once, where it waits for K tasks. Such a *join* needs nothing done to the forward pass:
    its two sides are the same edge of the graph, which backward passes can begin and end at. One that ends there goes
    on if something below is asked for too, and would count that twice: joins let through what begins at them alone.

    Args:
        pieces: those of cuts, in their order, without the losses; joins are appended.
        starts: node at which the graph after a cut begins → number of the cut.
        index: id of a parameter → its position.
    """

    def __init__(self, pieces: list[Piece], starts: Mapping[Any, int], index: Mapping[int, int]) -> None:
        self.pieces, self.index = pieces, index
        self.starts = dict(starts)
        self.gate = _Gate()

    def grad(
        self, number: int | None, output: Tensor | GradientEdge, inputs: Sequence[Any], grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """One backward pass through the piece that ends at cut `number` (None: at a loss); the graph is kept."""
        self.gate.open = number
        given = None if grad is None else [grad]
        return torch.autograd.grad([output], inputs, given, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]

    def complete(self, losses: Mapping[int, Any]) -> dict[int, Piece]:
        """Fill in sources and parameters of all pieces; returns those of the losses.

        Args:
            losses: task → the node that its loss comes from.
        """
        open_ = [piece for piece in self.pieces if piece.linear is None]
        top = {k: Piece(None) for k in losses}
        begins = [(piece, piece.cut.outer) for piece in open_ if piece.cut is not None]
        begins += [(top[k], GradientEdge(node, 0)) for k, node in losses.items()]
        for node in self._joins(begins):
            edge = GradientEdge(node, 0)
            number = self.starts[node] = len(self.pieces)
            node.register_prehook(partial(_through, self.gate, number))
            joined = Piece(Cut(edge, edge, torch.Size(()), torch.float32))
            self.pieces.append(joined)
            joined.sources, joined.parameters = self._walk([before for before, _ in node.next_functions])
        for piece, edge in begins:
            piece.sources, piece.parameters = self._walk([edge.node])
        return top

    def order(self) -> list[int]:
        """The numbers of the pieces, sources before what they lead to: as the forward pass made them."""
        return sorted(range(len(self.pieces)), key=lambda n: self.pieces[n].cut.entry.node._sequence_nr())  # type: ignore[union-attr]

    def leads_to(self, targets: set[int]) -> list[bool]:
        """For each cut whether one of the parameters lies before it."""
        leads = [False] * len(self.pieces)
        for n in self.order():
            piece = self.pieces[n]
            leads[n] = any(i in targets for i in piece.parameters) or any(leads[s] for s in piece.sources)
        return leads

    def _walk(self, nodes: Iterable[Any]) -> tuple[list[int], list[int]]:
        """The cuts at which the graph above these nodes begins, and the parameters in it."""
        sources, parameters = set(), set()
        stack, seen = [n for n in nodes if n is not None], set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.starts:
                sources.add(self.starts[node])
                continue
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self.index:
                parameters.add(self.index[id(leaf)])
            stack.extend(parent for parent, _ in node.next_functions if parent is not None)
        return sorted(sources), sorted(parameters)

    def _joins(self, begins: Sequence[tuple[Piece, GradientEdge]]) -> list[Any]:
        """Nodes where pieces run together: in more of them than a node that follows."""
        found: dict[Any, _Seen] = {}
        for bit, (_, edge) in enumerate(begins):
            self._mark(1 << bit, edge, found)
        joins = [
            node
            for node, seen in found.items()
            if seen.single
            and seen.inside & (seen.inside - 1)
            and node.next_functions
            and any(after is None or found[after].inside != seen.inside for after in seen.after)
        ]
        return sorted(joins, key=lambda node: node._sequence_nr())

    def _mark(self, bit: int, edge: GradientEdge, found: dict[Any, _Seen]) -> None:
        """Note a piece in every node of it."""
        stack: list[tuple[Any, int, Any]] = [(edge.node, edge.output_nr, None)]
        visited = set()
        while stack:
            node, output, after = stack.pop()
            if node is None or node in self.starts:
                continue
            seen = found.setdefault(node, _Seen())
            seen.inside |= bit
            seen.after.add(after)
            seen.single &= output == 0
            if node not in visited:
                visited.add(node)
                stack.extend((parent, number, node) for parent, number in node.next_functions)


@dataclass
class _Gate:
    """The join that a backward pass begins at; apart from the graph, so that its hooks are no cycle of references."""

    open: int | None = None


def _through(gate: _Gate, number: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return grads if gate.open == number else (None,) * len(grads)
