"""What one forward pass costs: FLOPs, and the bytes it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from runner.randomness import forked_rng
from runner.types import Group

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Of one forward pass in evaluation mode, which has the sizes of a training one.

    Attributes:
        flops: of matrix products, convolutions and attention, a multiplication and an addition counted as two; the
            usual convention, which leaves out what is done element by element.
        saved_bytes: kept for the backward pass, parameters not counted.
    """

    flops: int
    saved_bytes: int


def in_shapes_only(run: Callable[[], T]) -> T:
    """What `run` returns, its tensors having shapes and no values: the largest model takes seconds and no memory.

    For the last thing that is done with a model: it may keep such tensors. Where values are asked for (a mask that is
    looked at, a number that decides), `run` is repeated with them.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return run()
    except RuntimeError:  # as all of torch's answers to such a question
        return run()


def forward_cost(model: nn.Module, group: Group, tasks: Sequence[str]) -> Cost:
    """Cost of `model(group, tasks)`."""
    return measure(model, lambda: model(group, tasks))


def measure(model: nn.Module, forward: Callable[[], Any]) -> Cost:
    """Cost of a forward pass of (parts of) a model; its mode, weights and the random generators stay as they are."""
    seen = [p.detach() for p in model.parameters()]  # what operations get for it: without values, another tensor
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *seen)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

    counter = FlopCounterMode(display=False, custom_mapping=_on_cpu())
    modes = {module: module.training for module in model.modules()}
    model.eval()  # BatchNorm cannot train on one example
    try:
        with (
            forked_rng(),
            torch.enable_grad(),
            counter,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            outputs = forward()  # alive until counted: storages that are freed could be counted twice
    finally:
        for module, mode in modes.items():
            module.training = mode
    cost = Cost(counter.get_total_flops(), sum(kept.values()))
    del outputs
    return cost


def _on_cpu() -> dict[Any, Any]:
    """Formulas that torch lacks: it counts the fused attention of GPUs only."""

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def in_words(flops: float) -> str:
    """12.3 GFLOP."""
    for unit in ("", "K", "M", "G", "T"):
        if flops < 1000:
            return f"{flops:.3g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.3g} PFLOP"
