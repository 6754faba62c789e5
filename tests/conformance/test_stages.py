"""Every backbone that can be driven stage by stage gives the same features that way, see `runner.backbones.staged`."""

from __future__ import annotations

import pytest
import torch

from runner.backbones.staged import Staged, require_stages
from runner.errors import UserError
from tests.backbones.samples import backbone, example, kind_of, option, options, scalar, tensors

STAGED = [
    "clip",
    "cnn9",
    "convnext",
    "dinov2",
    "hrnet",
    "lenet",
    "mlp",
    "pvt_v2",
    "resnet",
    "segformer",
    "segnet",
    "swin",
    "vit",
]


def drive(net, inputs):
    x, run = net.begin(inputs)
    inners, states = [], []
    for index in range(len(net.stage_channels)):
        inner, x = net.stage(index, x, run)
        inners.append(inner)
        states.append(x)
    return net.collect(states, run), states, inners


@pytest.fixture(params=STAGED, scope="module")
def config(request):
    return {**option("backbone", request.param), "size": "tiny"}


def sizes(kind):
    return [(64, 64), (70, 51)] if kind == "image" else [(0, 0)]


def close(left, right, **tolerance):
    """Relative to the largest value where that is above 1: not all networks start with features of that size."""
    for a, b in zip(tensors(left), tensors(right), strict=True):
        scale = b.abs().max().clamp(min=1)
        torch.testing.assert_close(a / scale, b / scale, **tolerance)


def test_the_list_is_complete():
    sized = [name for name in options("backbone") if "size" in option("backbone", name)]
    tiny = {name: backbone({**option("backbone", name), "size": "tiny"}) for name in sized}
    kinds = {type(net): name for name, net in reversed(tiny.items()) if isinstance(net, Staged)}
    assert {type(tiny[name]) for name in STAGED} == set(kinds)


def test_features_are_those_of_the_plain_forward(config):
    kind = kind_of(config)
    net = backbone(config).eval()
    for size in sizes(kind):
        inputs = example(kind, size=size)
        staged, states, inners = drive(net, inputs)
        close(staged, net(inputs), atol=5e-6, rtol=1e-5)
        assert staged.size == net(inputs).size
        assert tuple(x.shape[1] for x in states) == net.stage_channels
        assert tuple(x.shape[1] for x in inners) == net.inner_channels
        for stride, state, inner in zip(net.stage_strides, states, inners, strict=bool(net.stage_strides)):
            assert state.shape[2:] == inner.shape[2:]
            assert all(-(-side // stride) <= cells for side, cells in zip(size, state.shape[2:], strict=True))


def test_gradients_are_those_of_the_plain_forward_whatever_the_tasks(config):
    kind = kind_of(config)
    serves = [kind for kind in ("dense", "pooled") if kind in backbone(config).serves]
    for kinds in [["dense"], ["pooled"], ["dense", "pooled"]] if len(serves) == 2 else [serves]:
        found = []
        for staged in (False, True):
            net = backbone(config).train()
            net.restrict(kinds)
            torch.manual_seed(5)  # stochastic depth is on
            features = drive(net, example(kind))[0] if staged else net(example(kind))
            scalar(features).backward()
            found.append({name: p.grad for name, p in net.named_parameters()})
        plain, ours = found
        for name, grad in plain.items():
            torch.testing.assert_close(ours[name], grad, atol=2e-6, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_levels_that_are_not_kept_are_still_stages(config):
    net = backbone(config).eval()
    if "dense" not in net.serves:
        pytest.skip("has no levels")
    net.restrict(["dense"])
    channels = net.stage_channels
    net.keep_levels([1])
    name = type(net).__name__
    left = {"SegNet": channels[:9], "HRNet": (*channels[:-1], net.spec.channels[0])}.get(name, channels)
    assert net.stage_channels == left
    staged = drive(net, example("image"))[0]
    close(staged, net(example("image")), atol=5e-6, rtol=1e-5)
    assert len(staged.pyramid) == 1


def test_gradient_checkpointing_and_bfloat16(config):
    if "gradient_checkpointing" not in config:
        pytest.skip("has no such key")
    nets = [backbone(config, gradient_checkpointing=on).train() for on in (False, True)]
    for net in nets:
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = drive(net, example("image"))[0]
        scalar(features).backward()
    for (name, plain), saved in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert plain.grad is not None and plain.grad.isfinite().all(), name
        torch.testing.assert_close(plain.grad, saved.grad, atol=1e-6, rtol=1e-4)


def test_stages_may_be_changed_in_between(config):
    """What an architecture puts in is what the rest of the network reads."""
    kind = kind_of(config)
    net = backbone(config).eval()
    x, run = net.begin(example(kind))
    states = []
    for index in range(len(net.stage_channels)):
        _, x = net.stage(index, x, run)
        x = x * torch.linspace(0.2, 1, x.shape[1]).view(-1, *[1] * (x.ndim - 2))  # no LayerNorm undoes this
        states.append(x)
    changed, plain = net.collect(states, run), net(example(kind))
    assert all(not torch.allclose(a, b) for a, b in zip(tensors(changed), tensors(plain), strict=True))


def test_backbones_without_stages_are_named():
    net = backbone({**option("backbone", "bert"), "size": "tiny"})
    with pytest.raises(UserError, match=r"CrossStitch works between the stages .* Bert cannot be run stage by stage"):
        require_stages(net, "CrossStitch")
    with pytest.raises(UserError, match="the states of ViT are no maps"):
        require_stages(backbone({**option("backbone", "vit"), "size": "tiny"}), "MTAN", maps=True)
