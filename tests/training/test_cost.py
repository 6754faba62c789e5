"""What a forward pass costs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from runner.training.cost import in_shapes_only, measure


def test_a_linear_layer():
    layer, x = nn.Linear(3, 5), torch.randn(7, 3)
    cost = measure(layer, lambda: layer(x).tanh())
    assert cost.flops == 2 * 7 * 3 * 5
    assert cost.saved_bytes == 4 * (7 * 3 + 7 * 5)  # its input, and the result of tanh
    assert in_shapes_only(lambda: measure(layer, lambda: layer(x).tanh())) == cost


@pytest.mark.parametrize("how", [lambda run: run(), in_shapes_only], ids=["values", "shapes"])
def test_the_model_is_let_go(how):
    def weight_of_a_measured_model():
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        how(lambda: measure(model, lambda: model(torch.ones(2, 3))))
        return weakref.ref(model[0].weight)

    found = weight_of_a_measured_model()
    gc.collect()
    assert found() is None


def test_no_memory_is_taken():
    """Two terabytes of activations."""
    layer = nn.Linear(1, 2**20)
    cost = in_shapes_only(lambda: measure(layer, lambda: layer(torch.zeros(2**19, 1)).tanh()))
    assert cost.saved_bytes == 4 * (2**39 + 2**19)


def test_values_are_computed_where_they_decide():
    calls = []

    def run():
        calls.append(1)
        return 2 if (torch.ones(3) > 0).all() else 1

    assert in_shapes_only(run) == 2 and len(calls) == 2


def test_errors_are_those_of_the_run():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        in_shapes_only(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
