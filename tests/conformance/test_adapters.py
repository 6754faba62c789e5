"""Every option of configs/adapter on backbones of every kind."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from torch import nn

from runner.adapters.base import Adapter
from runner.backbones.bert import Bert
from runner.backbones.gpt2 import GPT2
from runner.backbones.resnet import ResNet
from runner.backbones.vit import ViT
from runner.config import paths
from runner.config.build import build
from runner.errors import UserError
from runner.specs import InputSpec

OPTIONS = [o for o in paths.options("adapter") if yaml.safe_load(o.path.read_text())["_target_"] is not None]
IMAGE = InputSpec("image", size=(32, 32))
TEXT = InputSpec("text", vocab_size=50, pad_token_id=0, max_length=16)


def make_backbone(kind: str):
    torch.manual_seed(0)
    if kind == "resnet":
        return ResNet(IMAGE, size="tiny", norm="group", stem_pool=False)
    return {"vit": ViT, "bert": Bert, "gpt2": GPT2}[kind](IMAGE if kind == "vit" else TEXT, size="tiny")


def batch(kind: str):
    torch.manual_seed(1)
    if kind in ("resnet", "vit"):
        return {"pixels": torch.rand(2, 3, 32, 32)}
    return {"input_ids": torch.randint(1, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}


def make(option, kind: str) -> Adapter:
    keys = {"targets": ["convolution"]} if kind == "resnet" else {}
    return build(yaml.safe_load(option.path.read_text()) | keys | {"rank": 3}, where="adapter")


@pytest.fixture(params=OPTIONS, ids=lambda o: o.name)
def option(request):
    return request.param


@pytest.fixture(params=["vit", "bert", "gpt2", "resnet"])
def kind(request):
    return request.param


def trained(option, kind):
    """(adapter, plain backbone, the adapted one after some steps)."""
    plain = make_backbone(kind)
    plain.restrict(["pooled"])
    adapted = copy.deepcopy(plain)
    adapter = make(option, kind)
    adapter.adapt(adapted)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        pooled = adapted(batch(kind)).pooled
        (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum().backward()
        optimizer.step()
    return adapter, plain.eval(), adapted.eval()


def test_it_changes_nothing_at_first_and_trains_only_its_own(option, kind):
    plain = make_backbone(kind).eval()
    plain.restrict(["pooled"])
    adapted = copy.deepcopy(plain)
    adapter = make(option, kind)
    adapter.adapt(adapted)
    assert torch.allclose(adapted(batch(kind)).pooled, plain(batch(kind)).pooled, atol=1e-5)
    own = {n for n in adapted.state_dict() if adapter.plain_name(n) is None}
    free = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert free and free == own
    assert {adapter.plain_name(n) for n in adapted.state_dict()} - {None} == set(plain.state_dict())


def test_folding_gives_the_same_function_and_leaves_the_model_as_it_is(option, kind):
    adapter, plain, adapted = trained(option, kind)
    before = {n: t.clone() for n, t in adapted.state_dict().items()}
    expected = adapted(batch(kind)).pooled.detach()
    assert not torch.allclose(expected, plain(batch(kind)).pooled, atol=1e-4)
    plain.load_state_dict(adapter.fold(adapted))
    assert torch.allclose(plain(batch(kind)).pooled, expected, atol=1e-4)
    after = adapted.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_frozen_weights_stay_where_they_were(option, kind):
    adapter, plain, adapted = trained(option, kind)
    start = plain.state_dict()
    for name, tensor in adapted.state_dict().items():
        if (plain_name := adapter.plain_name(name)) is not None:
            assert torch.equal(tensor, start[plain_name]), name


def test_targets_that_are_not_there_are_named(option):
    adapter = build(yaml.safe_load(option.path.read_text()) | {"targets": ["querry"]}, where="adapter")
    with pytest.raises(UserError, match="no layer 'querry'"):
        adapter.adapt(make_backbone("vit"))


def test_a_backbone_without_linear_layers_says_what_to_name(option):
    with pytest.raises(UserError, match="no linear layers") as caught:
        build(yaml.safe_load(option.path.read_text()), where="adapter").adapt(make_backbone("resnet"))
    assert "convolution" in caught.value.problems[0].hint
    assert isinstance(make_backbone("resnet"), nn.Module)
