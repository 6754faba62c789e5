"""Every option of configs/backbone, at its tiny size, keeps what `runner.backbones.base` promises."""

from __future__ import annotations

import copy

import pytest
import torch

from runner.backbones.tangent import Tangent
from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.types import Features
from tests.backbones.samples import SPECS, backbone, example, kind_of, option, options, scalar, tensors

SUBSETS = {
    "image": [["dense"], ["pooled"], ["dense", "pooled"]],
    "text": [["pooled"], ["token"]],
    "table": [["pooled"]],
    "graph": [["pooled"]],
}


def tiny_options() -> dict[str, dict]:
    """Every option at its tiny size; those that differ in size only (vit, vit_large) are there once.

    Not those without sizes: the two numbers of toy_point have no layers.
    """
    configs = {}
    for name in options("backbone"):
        if "size" not in option("backbone", name):
            continue
        config = {**option("backbone", name), "size": "tiny"}
        if config not in configs.values():
            configs[name] = config
    return configs


TINY = tiny_options()


@pytest.fixture(params=TINY.values(), ids=TINY, scope="module")
def config(request):
    return request.param


@pytest.mark.parametrize("name", options("backbone"))
def test_the_option_as_it_stands_can_be_built(name):
    with torch.device("meta"):
        net = backbone(option("backbone", name))
    assert sum(p.numel() for p in net.parameters()) > 0


@pytest.fixture
def kind(config):
    return kind_of(config)


def close(a: Features, b: Features, atol: float = 0.0) -> None:
    for left, right in zip(tensors(a), tensors(b), strict=True):
        torch.testing.assert_close(left, right, atol=atol, rtol=0)


def gradients(net) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [(64, 64), (70, 51), (33, 96)], ids=str)
def test_shapes_are_those_of_the_spec(config, kind, size):
    net = backbone(config).eval()
    spec: FeatureSpec = net.spec
    features = net(example(kind, batch=2, size=size))
    if "dense" in net.serves:
        expected = [
            (2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(spec.channels, spec.strides, strict=True)
        ]
        assert [tuple(level.shape) for level in features.pyramid] == expected
        assert list(spec.strides) == sorted(set(spec.strides))
        assert features.size == size
    else:
        assert features.pyramid is None and spec.channels == ()
    assert features.pooled.shape == (2, spec.dim)
    if "token" in net.serves:
        assert features.tokens.shape == (2, 8, spec.dim)
        assert torch.equal(features.mask, example(kind)["attention_mask"].bool())
    else:
        assert features.tokens is None


def test_gradients_reach_every_parameter_whatever_the_tasks(config, kind):
    serves = set(backbone(config).serves)
    for kinds in [kinds for kinds in SUBSETS[kind] if serves.issuperset(kinds)]:
        net = backbone(config)
        if not set(kinds) <= set(net.serves):
            continue
        net.restrict(kinds)
        features = net(example(kind))
        assert (features.pyramid is not None) == ("dense" in kinds)
        assert (features.pooled is not None) == ("pooled" in kinds)
        if "token" not in kinds:
            features.tokens = None
        scalar(features).backward()
        unreached = [name for name, p in net.named_parameters() if p.grad is None]
        assert unreached == [], f"tasks of kind {kinds} do not reach these"
        assert all(g.isfinite().all() for g in gradients(net).values())


def test_kinds_it_does_not_serve_are_refused(config):
    net = backbone(config)
    missing = next(k for k in ("dense", "token") if k not in net.serves)
    with pytest.raises(ValueError, match="does not serve"):
        net.restrict([missing])


def test_layer_groups_hold_every_parameter_once_and_in_order(config):
    net = backbone(config)
    flat = [id(p) for group in net.layer_groups() for p in group]
    assert sorted(flat) == sorted(id(p) for p in net.parameters())
    assert len(net.layer_groups()) >= 3


def test_layer_groups_run_in_order(config, kind):
    net = backbone(config)
    modules = [*net.trunk_groups(), net.neck_modules()]
    order = []
    for index, group in enumerate(modules):
        for module in (m for top in group for m in top.modules()):
            if list(module.parameters(recurse=False)):
                module.register_forward_hook(lambda *_, index=index: order.append(index))
    net(example(kind))
    first_use = list(dict.fromkeys(order))
    assert len(first_use) >= 3
    assert first_use == sorted(first_use)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(config):
    first, second, other = (backbone(config, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_state_dict_round_trip(config, kind):
    net, other = backbone(config, seed=0).eval(), backbone(config, seed=1).eval()
    state = net.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state), "safetensors refuses shared memory"
    other.load_state_dict(state, strict=True)
    close(net(example(kind)), other(example(kind)))


def test_a_copy_is_independent(config, kind):
    changes = {"gradient_checkpointing": True} if "gradient_checkpointing" in config else {}
    net = backbone(config, frozen=1, **changes)
    twin = copy.deepcopy(net)
    scalar(twin.train()(example(kind))).backward()
    assert gradients(net) == {}
    assert gradients(twin).keys() == {n for n, p in net.named_parameters() if p.requires_grad}
    assert not any(m.training for top in twin.trunk_groups()[0] for m in top.modules())


def test_examples_do_not_touch_one_another(config, kind):
    net = backbone(config).eval()
    inputs = example(kind, batch=3)
    whole = net(inputs)
    for i in range(3):
        alone = net({key: value[i : i + 1] for key, value in inputs.items()})
        for part, single in zip(tensors(whole), tensors(alone), strict=True):
            scale = part.abs().max().clamp(min=1)  # not all networks start with features of about 1
            torch.testing.assert_close(part[i : i + 1] / scale, single / scale, atol=2e-5, rtol=1e-5)


def test_padding_does_not_change_text_features(config, kind):
    if kind != "text":
        pytest.skip("only texts are padded")
    net = backbone(config).eval()
    for pooling in ("first", "mean", "last"):
        net.pooling = pooling
        inputs = example(kind, length=6)
        longer = {key: torch.nn.functional.pad(value, (0, 8)) for key, value in inputs.items()}
        short, padded = net(inputs), net(longer)
        torch.testing.assert_close(short.pooled, padded.pooled, atol=1e-5, rtol=0)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(short.tokens[real], padded.tokens[:, :6][real], atol=1e-5, rtol=0)


def test_bfloat16_autocast(config, kind):
    net = backbone(config)
    exact = net.eval()(example(kind))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(example(kind))
    for left, right in zip(tensors(exact), tensors(rough), strict=True):
        assert (left - right.float()).abs().max() <= 0.1 * left.abs().max() + 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = scalar(net.train()(example(kind)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_gradient_checkpointing_changes_nothing(config, kind):
    if "gradient_checkpointing" not in config:
        pytest.skip("has no such key")
    nets = [backbone(config, gradient_checkpointing=on).train() for on in (False, True)]
    for net in nets:
        torch.manual_seed(7)  # dropout and stochastic depth are on
        scalar(net(example(kind))).backward()
    plain, saved = (gradients(net) for net in nets)
    assert plain.keys() == saved.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], saved[name], atol=1e-7, rtol=1e-5)
    for name, buffer in nets[0].named_buffers():  # BatchNorm saw the batch once
        assert torch.equal(buffer, nets[1].get_buffer(name)), name


def test_checkpointed_blocks_are_computed_again(config, kind):
    if "gradient_checkpointing" not in config:
        pytest.skip("has no such key")
    net = backbone(config, gradient_checkpointing=True).train()
    calls = []
    inner = next(
        m for m in net.blocks()[0].modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d | torch.nn.LayerNorm)
    )
    inner.register_forward_hook(lambda *_: calls.append(1))
    loss = scalar(net(example(kind)))
    before = len(calls)
    loss.backward()
    assert len(calls) == 2 * before > 0


def test_save_and_load(config, kind, tmp_path):
    if "pretrained" not in config:
        pytest.skip("has no checkpoints")
    net = backbone(config, seed=0).eval()
    net.trunk.save_pretrained(tmp_path)
    again = backbone(config, seed=1, pretrained=str(tmp_path)).eval()
    ours, loaded = net.trunk.state_dict(), again.trunk.state_dict()
    assert ours.keys() == loaded.keys()
    assert all(torch.equal(ours[k], loaded[k]) for k in ours)
    for mine, theirs in zip(net.neck_modules(), again.neck_modules(), strict=True):
        theirs.load_state_dict(mine.state_dict())
    close(net(example(kind)), again(example(kind)))
    unsized = backbone({**config, "size": None}, pretrained=str(tmp_path))
    assert unsized.spec == net.spec


def test_frozen_parts_neither_train_nor_drop_out(config, kind):
    total = len(backbone(config).trunk_groups())
    for frozen, count in ((False, 0), (1, 1), (2, 2), (True, total)):
        net = backbone(config, frozen=frozen)
        groups = net.trunk_groups()
        fixed = {id(p) for g in groups[:count] for m in g for p in m.parameters()}
        assert {id(p) for p in net.parameters() if not p.requires_grad} == fixed
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net.train()
        for index, group in enumerate(groups):
            for module in group:
                assert all(m.training == (index >= count) for m in module.modules())
        features = net(example(kind))
        if any(t.requires_grad for t in tensors(features)):
            scalar(features).backward()
        frozen_names = {f"{n}." for n, m in net.named_modules() if any(m is x for g in groups[:count] for x in g)}
        for name, value in net.state_dict().items():
            if name.startswith(tuple(frozen_names)):
                assert torch.equal(value, before[name]), f"{name} changed although frozen"
        if frozen is True:
            assert gradients(net).keys() == {n for n, p in net.named_parameters() if id(p) not in fixed}


def test_a_frozen_trunk_gives_the_same_in_train_and_eval(config, kind):
    net = backbone(config, frozen=True)
    close(net.train()(example(kind)), net.eval()(example(kind)))


def test_too_many_frozen_groups(config):
    total = len(backbone(config).trunk_groups())
    with pytest.raises(UserError, match=f"has {total} layer groups"):
        backbone(config, frozen=total + 1)


def test_another_kind_of_input_is_refused(config, kind):
    for other in SPECS.keys() - {kind}:
        with pytest.raises(UserError, match=f"feeds it {other}"):
            backbone(config, SPECS[other])


def test_it_has_a_tangent_space(config, kind):
    """As `finetune=linearized` trains it: its slope is that of finite differences, and it has a gradient."""
    net = backbone(config).eval().double()
    net.restrict([next(iter(net.serves))])
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in example(kind).items()}
    tangent = Tangent(net).eval()
    torch.manual_seed(0)
    origin = [p.detach().clone() for p in net.parameters()]
    way = [torch.randn_like(p) * 0.1 for p in origin]

    def move(share: float) -> None:
        with torch.no_grad():
            for p, start, step in zip(net.parameters(), origin, way, strict=True):
                p.copy_(start + share * step)

    def features(share: float) -> list[torch.Tensor]:
        move(share)
        with torch.no_grad():
            return tensors(net(inputs))

    move(1.0)
    linear = tangent(inputs)
    scalar(linear).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    near = []  # by step: a long one passes kinks, a short one drowns where a layer computes in float32
    for small in (1e-4, 1e-7):
        differences = zip(tensors(linear), features(0.0), features(-small), features(small), strict=True)
        slopes = [(found - here, (after - before) / (2 * small)) for found, here, before, after in differences]
        near.append([float(((a - b).abs() <= 0.02 * b.abs().max()).float().mean()) for a, b in slopes])
    assert all(max(shares) > 0.9 for shares in zip(*near, strict=True)), near
