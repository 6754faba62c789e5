"""The Gram matrix of the per-task gradients, layer by layer, without holding K×P floats.

The graph is cut at every layer with shared parameters, and where branches join (`runner.weighting.pieces`). The K
backward passes then go through the cuts together, from the last to the first: all K gradients of a layer exist at the
same time, give their inner products, and are dropped. Once the coefficients are known, one more backward pass over the
same cuts applies them. What it takes beside a plain step is K gradients of the widest activation, which is less than
K×P floats where layers have more parameters than the batch has activations, and more in a small convolutional net.

For a linear layer the weight's gradients are not even formed where that is cheaper: with inputs A (N×I) and output
gradients δ_k (N×O), ⟨δ_jᵀA, δ_kᵀA⟩ = Σ (δ_j δ_kᵀ) ∘ (A Aᵀ).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import UserError
from runner.weighting.cut import cut, map_tensors
from runner.weighting.engine import Engine, Pass
from runner.weighting.gram_sums import GramSums, linear_gram
from runner.weighting.pieces import Piece, Pieces
from runner.weighting.step import add_grad, identity, to_host

_WORTH = 1.0
"""A cut holds K gradients of an activation; without it K gradients of the parameters since the last one are held. It is
made where the activation is at most this many times as large."""


class GramPass(Pass):
    """See the head of this file. One process and one micro-batch: inner products of sums need all their terms.

    Raises:
        UserError: several processes or micro-batches, or no model to hook.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if engine.model is None or engine.micro_batches > 1 or engine.reduce is not identity:
            raise UserError(
                "weighting.mode=gram needs trainer.accumulation=1 and launch.num_processes=1: the gradients of a step "
                "must be complete, layer by layer, for their inner products",
                "use weighting.mode=parameters, which is exact in every setting",
            )
        self.index = {id(p): i for i, p in enumerate(engine.parameters)}
        self.is_shared = [False] * len(engine.parameters)
        for i in engine.reach.shared:
            self.is_shared[i] = True
        self.recording = False
        for module in _layers(engine.model, {id(p) for p in engine.shared}):
            if _is_linear(module):
                module.register_forward_pre_hook(self._before_linear)
            module.register_forward_hook(self._after)

    # ---- forward --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.pieces: list[Piece] = []
        self.open, self.met = 0, set[int]()  # parameters since the last cut, and those that came before
        self.starts: dict[Any, int] = {}  # node at which the graph after a cut begins → number of the cut
        self.inputs: dict[int, tuple[Tensor, int | None]] = {}
        self.reused: dict[tuple[Any, int], tuple[Tensor, int]] = {}
        self.graph = Pieces(self.pieces, self.starts, self.index)
        self.recording = True

    @property
    def _listening(self) -> bool:
        return self.recording and self.engine.current is self and torch.is_grad_enabled()

    def _cut(self, tensor: Tensor, piece: Piece) -> Tensor:
        entry, piece.cut = cut(tensor)
        self.starts[piece.cut.entry.node] = len(self.pieces)
        self.pieces.append(piece)
        return entry

    def _before_linear(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._listening:
            return None
        (tensor,) = args
        assert isinstance(module, nn.Linear)
        widest = tensor.numel() // module.in_features * max(module.in_features, module.out_features)
        if widest > _WORTH * module.weight.numel():
            return None  # as any other module
        if not tensor.requires_grad:
            self.inputs[id(module)] = (tensor, None)
            return None
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        if edge.node in self.starts:  # the output of a layer that was cut already
            self.inputs[id(module)] = (tensor.detach(), self.starts[edge.node])
            return None
        key = (edge.node, edge.output_nr)
        if key not in self.reused:
            entry = self._cut(tensor, Piece(None))
            self.reused[key] = (entry, len(self.pieces) - 1)
        entry, number = self.reused[key]
        self.inputs[id(module)] = (tensor.detach(), number)
        return (entry,)

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._listening:
            return None

        new = {id(p): p.numel() for p in module.parameters() if id(p) in self.index and id(p) not in self.met}
        self.met |= new.keys()
        self.open += sum(new.values())
        alone = id(module) in self.inputs

        def change(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or not (alone or tensor.numel() <= _WORTH * self.open):
                return tensor
            self.open = 0
            piece = Piece(None)
            if alone:
                given, source = self.inputs.pop(id(module))
                piece.linear = (module, given)  # type: ignore[assignment]
                piece.sources = [] if source is None else [source]
                piece.parameters = [self.index[id(p)] for p in module.parameters() if id(p) in self.index]
            return self._cut(tensor, piece)

        return map_tensors(output, change)

    # ---- backward -------------------------------------------------------------------------------------------------

    def backward(self, partial: Mapping[int, Tensor]) -> None:
        self.recording = False
        self.losses = {k: loss for k, loss in partial.items() if loss.requires_grad}
        self.graph = Pieces(self.pieces, self.starts, self.index)
        self.top = self.graph.complete({k: loss.grad_fn for k, loss in self.losses.items()})

    def finish(self, losses: Tensor) -> Tensor:
        engine = self.engine
        rows = torch.tensor(engine.present)
        gram = to_host(self._gram_matrix())[rows[:, None], rows] / engine.scale**2
        engine.solve(gram)
        own = {self.index[id(p)] for k in self.losses for p in engine.specific(k)} | set(engine.reach.rest)
        if engine.head_weights is engine.weights:
            self._apply(engine.weights, own | set(engine.reach.shared))
        else:
            self._apply(engine.weights, set(engine.reach.shared))
            self._apply(engine.head_weights, own)
        engine.reduce_gradients([engine.parameters[i] for i in engine.reach.of(engine.present)])
        self.losses, self.top = {}, {}
        self.leave()
        return gram

    def leave(self) -> None:
        self.begin()  # lets go of the graph
        self.recording = False

    def _gram_matrix(self) -> Tensor:
        """(K, K) float64, of the gradients times the loss scale, on their device."""
        engine = self.engine
        pieces = [piece.parameters for piece in [*self.pieces, *self.top.values()]]
        sums = GramSums(len(engine.tasks), [p.numel() for p in engine.parameters], engine.device, pieces)
        wanted = self.graph.leads_to(set(engine.reach.shared))
        pending: dict[int, dict[int, Tensor]] = {}  # cut → task → gradient
        for k, loss in self.losses.items():
            piece = self.top[k]
            self._push(None, piece, loss * engine.scale, None, k, wanted, pending, sums)
            sums.passed(piece.parameters)
        for number in reversed(self.graph.order()):
            piece, grads = self.pieces[number], pending.pop(number, {})
            if wanted[number] and grads:
                assert piece.cut is not None
                if piece.linear is not None:
                    self._push_linear(piece, grads, wanted, pending, sums)
                else:
                    for k in list(grads):  # each is let go once it is through
                        self._push(number, piece, piece.cut.outer, grads.pop(k), k, wanted, pending, sums)
            sums.passed(piece.parameters)
        return sums.gram

    def _push(
        self,
        number: int | None,
        piece: Piece,
        output: Any,
        grad: Tensor | None,
        k: int,
        wanted: Sequence[bool],
        pending: Any,
        sums: GramSums,
    ) -> None:
        """Task k's gradient at the end of a piece → at its beginnings."""
        sources = [s for s in piece.sources if wanted[s]]
        parameters = [i for i in piece.parameters if self.is_shared[i]]
        inputs = self._inputs(sources, parameters)
        if not inputs:
            return
        found = self.graph.grad(number, output, inputs, grad)
        for source, part in zip(sources, found, strict=False):
            _add(pending.setdefault(source, {}), k, part)
        for i, part in zip(parameters, found[len(sources) :], strict=True):
            if part is not None:
                sums.add(i, k, part)

    def _push_linear(
        self, piece: Piece, grads: dict[int, Tensor], wanted: Sequence[bool], pending: Any, sums: GramSums
    ) -> None:
        """The same for a linear layer and all tasks at once; `grads` are let go on the way."""
        assert piece.linear is not None
        layer, given = piece.linear
        tasks = list(grads)
        deltas = {k: grad.reshape(-1, layer.out_features) for k, grad in grads.items()}
        grads.clear()
        dtype = deltas[tasks[0]].dtype
        input_NI = given.reshape(-1, layer.in_features).to(dtype)
        for i in piece.parameters:
            if not self.is_shared[i]:
                continue
            if self.engine.parameters[i] is not layer.weight:
                for k, delta_NO in deltas.items():
                    sums.add(i, k, delta_NO.sum(0))
            elif sums.only_here(i):
                sums.add_gram(tasks, linear_gram(list(deltas.values()), input_NI))
            else:
                for k, delta_NO in deltas.items():
                    sums.add(i, k, delta_NO.T @ input_NI)
        for source in piece.sources:  # a linear layer has one input
            if not wanted[source]:
                continue
            cut_ = self.pieces[source].cut
            assert cut_ is not None
            weight_OI = layer.weight.detach().to(dtype)
            # One product reads the weight once instead of K times; where that is not what it costs, one task's gradient
            # takes the place of another's.
            together = len(input_NI) < layer.out_features
            backs = iter(torch.stack(list(deltas.values())) @ weight_OI) if together else None
            for k in tasks:
                delta_NO = deltas.pop(k)
                back_NI = delta_NO @ weight_OI if backs is None else next(backs)
                del delta_NO
                _add(pending.setdefault(source, {}), k, back_NI.reshape(cut_.shape).to(cut_.dtype))

    def _apply(self, weights: Tensor, targets: set[int]) -> None:
        """Add the gradient of Σ_k w_k L_k with respect to the target parameters to `.grad`."""
        engine = self.engine
        wanted = self.graph.leads_to(targets)
        pending: dict[int, dict[int, Tensor]] = {}
        terms = [weights[engine.present.index(k)].detach() * loss for k, loss in self.losses.items()]
        if not terms:
            return

        def through(number: int | None, piece: Piece, output: Any, grad: Tensor | None) -> None:
            sources = [s for s in piece.sources if wanted[s]]
            parameters = [i for i in piece.parameters if i in targets]
            inputs = self._inputs(sources, parameters)
            if not inputs:
                return
            found = self.graph.grad(number, output, inputs, grad)
            for source, part in zip(sources, found, strict=False):
                _add(pending.setdefault(source, {}), 0, part)
            for i, part in zip(parameters, found[len(sources) :], strict=True):
                add_grad(engine.parameters[i], part)

        top = Piece(
            None,
            sorted({s for p in self.top.values() for s in p.sources}),
            sorted({i for p in self.top.values() for i in p.parameters}),
        )
        through(None, top, torch.stack(terms).sum() * engine.scale, None)
        for number in reversed(self.graph.order()):
            grads = pending.pop(number, {})
            if grads:
                through(number, self.pieces[number], self.pieces[number].cut.outer, grads[0])  # type: ignore[union-attr]

    def _inputs(self, sources: Sequence[int], parameters: Sequence[int]) -> list[Any]:
        """What gradients are asked for: at these cuts and of these parameters."""
        entries = [self.pieces[s].cut.entry for s in sources]  # type: ignore[union-attr]
        return [*entries, *(self.engine.parameters[i] for i in parameters)]


def _layers(model: nn.Module, shared: set[int]) -> list[nn.Module]:
    """The modules to cut at: those with shared parameters of their own, and checkpointed ones as a whole."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        if "forward" in vars(module):  # wrapped from outside: its inside may run twice
            if any(id(p) in shared for p in module.parameters()):
                found.append(module)
            return
        if any(id(p) in shared for p in module.parameters(recurse=False)):
            found.append(module)
        for child in module.children():
            visit(child)

    visit(model)
    return [module for module in found if module is not model]


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and "forward" not in vars(module)


def _add(grads: dict[int, Tensor], k: int, grad: Tensor | None) -> None:
    if grad is not None:
        grads[k] = grads[k] + grad if k in grads else grad
