"""Every option of configs/merge that looks at data: identities, the same twice, modules that come back."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from runner.backbones.bert import Bert
from runner.backbones.resnet import ResNet
from runner.backbones.vit import ViT
from runner.config import paths
from runner.config.build import build, locate
from runner.config.compose import compose
from runner.merging.base import DataMerge
from runner.merging.modules import MergedModule, realise, rebuild
from runner.merging.with_data.common import base_of, experts_of
from runner.specs import InputSpec
from runner.training.checkpoints import load_weights, save_weights
from tests.merging.toy import make, make_from, outputs

QUICK = {
    "steps": 3,
    "anchor_steps": 3,
    "anchors": 4,
    "evaluations": 5,
    "examples": 4,
    "shots": 3,
    "batch_size": 8,
    "head_lr": 1e-9,
}


def composed(option: paths.Option) -> dict:
    config = compose("train", ["+experiment=demo", f"merge={option.name}"]).config.merge
    return OmegaConf.to_container(config, resolve=True)


def with_data(option: paths.Option) -> bool:
    text = option.path.read_text()
    return "runner.merging.with_data." in text or any(f"- {o}\n" in text for o in ("search", "smile", "adamerging"))


OPTIONS = [option for option in paths.options("merge") if with_data(option)]


@pytest.fixture(params=OPTIONS, ids=lambda o: o.name)
def strategy(request) -> DataMerge:
    config = composed(request.param)
    quick = {key: value for key, value in QUICK.items() if key in config}
    return build(config | quick, where="merge")


def fit(strategy, spread: float = 0.3):
    models, data = make(spread=spread, rows=12)
    return models, data, strategy.fit(models, data)


def predictions(strategy, models, data, merged):
    return outputs(realise(merged, strategy, data.model, models), data)


def test_task_vectors_of_zero_give_the_base(strategy):
    models, data, merged = fit(strategy, spread=0.0)
    expected = outputs(data.runs(base_of(models)), data)
    found = predictions(strategy, models, data, merged)
    for task in expected:
        assert torch.allclose(found[task].log_softmax(1), expected[task].log_softmax(1), atol=1e-4), task


def test_twice_is_the_same_and_inputs_stay_as_they_were(strategy):
    models, data, merged = fit(strategy)
    fresh, _ = make(rows=12)
    for expert, tensors in experts_of(fresh).items():
        assert all(torch.equal(t, models.experts[expert].whole(n)) for n, t in tensors.items())
    first = predictions(strategy, models, data, merged)
    other_models, other_data, again = fit(strategy)
    second = predictions(strategy, other_models, other_data, again)
    assert all(torch.equal(first[t], second[t]) for t in first)


def test_what_it_gives_is_finite_and_comes_back_from_a_checkpoint(strategy, tmp_path):
    models, data, merged = fit(strategy)
    final = realise(merged, strategy, data.model, models)
    expected = outputs(final, data)
    assert all(o.isfinite().all() for o in expected.values())
    save_weights(final, tmp_path / "w.safetensors")
    _, fresh = make(seed=3, rows=12)
    shapes = {e: {n: torch.empty_like(t) for n, t in ts.items()} for e, ts in experts_of(models).items()}
    plain = final.plain() if isinstance(final, MergedModule) else None
    restored = rebuild(strategy, fresh.model, plain, shapes)
    load_weights(restored, tmp_path / "w.safetensors")
    with torch.no_grad():
        found = {t: restored(g, [t])[t] for t, g in data.validation.items()}
    assert all(torch.equal(found[t], expected[t]) for t in expected)


IMAGES = {"pixels": torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
TEXTS = {"input_ids": torch.arange(3, 63).view(6, 10), "attention_mask": torch.ones(6, 10, dtype=torch.int64)}
BACKBONES = {
    "vit": (lambda: ViT(InputSpec("image"), size="tiny"), IMAGES),
    "vit-conv": (lambda: ViT(InputSpec("image"), size="tiny", stem="conv"), IMAGES),
    "resnet": (lambda: ResNet(InputSpec("image"), size="tiny"), IMAGES),
    "bert": (lambda: Bert(InputSpec("text", vocab_size=64, pad_token_id=0, max_length=10), size="tiny"), TEXTS),
}


@pytest.mark.parametrize("backbone", [pytest.param(n, marks=[] if n == "vit" else pytest.mark.slow) for n in BACKBONES])
def test_it_merges_real_backbones(strategy, backbone):
    """Their layers are of many kinds, and some are looked at by the code around them."""
    made, inputs = BACKBONES[backbone]
    models, data = make_from(made(), inputs)
    found = predictions(strategy, models, data, strategy.fit(models, data))
    assert all(values.isfinite().all() and values.std() > 0 for values in found.values())


def test_every_option_says_what_it_returns(strategy):
    assert strategy.needs in ("unlabelled", "labelled")
    assert (strategy.returns == "state_dict") == (not hasattr(type(strategy), "module_type"))
    assert locate(f"{type(strategy).__module__}.{type(strategy).__name__}") is type(strategy)
