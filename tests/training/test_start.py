"""Where training starts: weights of other runs and folders, fitted heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from runner.adapters.lora import LoRA
from runner.backbones.mlp import MLP
from runner.backbones.tangent import Tangent
from runner.errors import UserError
from runner.specs import InputSpec
from runner.tasks.classification import Classification
from runner.training.probing import fit_linear
from runner.training.start import load_backbone, load_heads, state_of

TABLE = InputSpec("table", num_numeric=4, cardinalities=(3,))


def backbone(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(TABLE, size="tiny")


def inputs(rows: int = 5):
    return {"numeric": torch.randn(rows, 4), "categorical": torch.randint(0, 3, (rows, 1))}


@pytest.mark.parametrize("before", ["backbone.", "", "module.backbone.", "backbone.point.", "backbones.depth."])
def test_names_may_stand_behind_what_a_run_puts_before_them(tmp_path, before):
    source, target = backbone(1), backbone(2)
    save_file({before + n: t for n, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_backbone(target, [tmp_path / "w.safetensors"])
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in target.state_dict().items())


def test_adapter_and_tangent_take_the_plain_weights(tmp_path):
    source = backbone(1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    adapted, linear = backbone(2), Tangent(backbone(2))
    LoRA(rank=2).adapt(adapted)
    x = inputs()
    for target in (adapted, linear):
        load_backbone(target, [tmp_path / "w.safetensors"])
        assert torch.allclose(target(x).pooled, source(x).pooled, atol=1e-6)
        assert set(state_of(target)) == set(source.state_dict())


def test_what_does_not_fit_is_named(tmp_path):
    source = backbone(1).state_dict()
    first = next(iter(source))
    save_file({n: t for n, t in source.items() if n != first}, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=first):
        load_backbone(backbone(), [tmp_path / "less.safetensors"])
    save_file(source | {first: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"\(2, 2\) instead of"):
        load_backbone(backbone(), [tmp_path / "other.safetensors"])


def test_heads_come_along_where_name_and_shape_are_the_same(tmp_path):
    heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2), "c": nn.Linear(3, 2)})
    saved = {"heads.a.weight": torch.ones(2, 3), "heads.a.bias": torch.ones(2), "heads.b.weight": torch.ones(5, 3)}
    save_file({**saved, "heads.b.bias": torch.ones(5)}, tmp_path / "w.safetensors")
    before = heads["b"].weight.clone()
    assert load_heads(heads, [tmp_path / "w.safetensors"]) == {"a"}
    assert torch.equal(heads["a"].weight, torch.ones(2, 3)) and torch.equal(heads["b"].weight, before)


def test_a_fitted_head_is_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)).astype(np.float32) * 2 + 3
    y = (x @ rng.normal(size=(5, 3))).argmax(1)
    layer, decay = nn.Linear(5, 3), 0.05
    fit_linear(layer, Classification("t", num_classes=3), torch.from_numpy(x), torch.from_numpy(y), decay)
    mean, scale = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean())
    oracle = LogisticRegression(C=1 / (decay * len(x)), tol=1e-8, max_iter=2000).fit((x - mean) / scale, y)
    found = layer(torch.from_numpy(x)).softmax(1).detach().numpy()
    assert np.allclose(found, oracle.predict_proba((x - mean) / scale), atol=2e-3)
