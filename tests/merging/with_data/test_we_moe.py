"""Weight-ensembling mixtures: layers against their weights mixed by hand, routers that learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from runner.backbones.vit import ViT
from runner.merging.with_data.common import base_of, vectors_of
from runner.merging.with_data.we_moe import EnsembledModule, GatedLayer, Router, WeMoe
from runner.specs import InputSpec
from tests.merging.test_units import images
from tests.merging.toy import make, outputs, outputs_of


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(6, 4), torch.randn(3, 6)),
        (nn.Linear(6, 4, bias=False), torch.randn(3, 5, 6)),
        (Conv1D(4, 6), torch.randn(3, 5, 6)),
        (nn.Conv2d(6, 4, 3, padding=1, stride=2), torch.randn(3, 6, 7, 7)),
    ],
)
def test_every_example_has_its_own_mixture_of_weights(layer, x):
    torch.manual_seed(0)
    gated = GatedLayer(layer, 2, Router(6, 5, 2), None)
    gated.delta.normal_()
    if gated.shift is not None:
        gated.shift.normal_()
    with torch.no_grad():
        found = gated(x)
        for b in range(len(x)):
            g_T = gated.coefficients[b]
            own = {"weight": layer.weight + torch.tensordot(g_T, gated.delta, 1)}
            if layer.bias is not None:
                own["bias"] = layer.bias + g_T @ gated.shift
            expected = torch.func.functional_call(layer, own, (x[b : b + 1],))
            torch.testing.assert_close(found[b : b + 1], expected, rtol=1e-4, atol=1e-5)


def test_routers_read_the_mean_over_tokens_and_start_even():
    router, x = Router(6, 4, 3), torch.randn(2, 5, 6)
    expected = torch.stack([router.up(torch.relu(router.down(t))).mean(0) for t in x])
    torch.testing.assert_close(router(x, -1), expected)
    torch.testing.assert_close(router(x.movedim(-1, 1), 1), expected)


def test_it_starts_as_task_arithmetic():
    models, data = make()
    merged = WeMoe(scale=0.4, steps=1, lr=1e-12).fit(models, data)
    base, vectors = base_of(models), vectors_of(models)
    tensors = {n: base[n] + 0.4 * sum(v[n] for v in vectors.values()) for n in base}
    found, expected = outputs(merged.module, data), outputs_of(tensors, data)
    for task in expected:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-4, atol=1e-4)


def test_routers_learn_to_make_predictions_certain():
    models, data = make()
    merged = WeMoe(scale=0.3, steps=150, lr=1e-2).fit(models, data)
    assert merged.report["entropy"]["last"] < 0.7 * merged.report["entropy"]["first"]
    assert merged.report["layers"] == 2 and merged.report["routers"] == 2


def test_layers_of_a_block_share_a_router_and_attention_is_left_alone():
    data = images(ViT(InputSpec("image"), size="tiny"))
    module = EnsembledModule(data.model, 3, WeMoe())
    assert len(module.routers()) == 4 and len(module.gated) == 8
    assert all("mlp" in path or "fc" in path or "dense" in path for path in module.gated)
    assert not any("attention" in path for path in module.gated)
    group = data.unlabelled["a"]
    assert module(group, ["a"])["a"].shape == (4, 3)
    with_stem = images(ViT(InputSpec("image"), size="mini", stem="conv"))  # whose convolutions are numbered too
    assert len(EnsembledModule(with_stem.model, 3, WeMoe()).routers()) == 4
    only = EnsembledModule(data.model, 3, WeMoe(layers_at=["*layers.2.*fc1"]))
    assert len(only.gated) == 1
