"""Every option of configs/head keeps what `runner.architectures.heads.base` promises."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.heads.aspp import ASPPHead
from runner.architectures.heads.conv import Conv
from runner.config.build import build
from runner.specs import FeatureSpec
from tests.architectures.samples import SPEC, features
from tests.backbones.samples import option, options

SIZES = [(64, 64), (70, 51), (33, 96)]
SPECS = {
    "four levels": SPEC,
    "dilated": FeatureSpec((8, 16, 24, 32), (4, 8, 8, 8), 32),
    "small images": FeatureSpec((8, 16, 24, 32), (2, 4, 8, 16), 32),
    "two levels": FeatureSpec((8, 32), (4, 16), 32),
}


@pytest.fixture(params=options("head"))
def make(request):
    config = option("head", request.param)
    if "channels" in config:
        config["channels"] = 16

    def make(spec=SPEC, out_channels=3, seed=0):
        torch.manual_seed(seed)
        if "classes" in config:  # texts, which these tests have no checkpoint for
            config.update(classes=[f"class {n}" for n in range(out_channels)], checkpoint=None)
        return build(config, spec, out_channels, where="head")

    return make


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_shapes(make, spec, size):
    head = make(spec)
    expected = {"dense": (2, 3, *size), "pooled": (2, 3), "token": (2, 5, 3)}[head.kind]
    assert head(features(spec, size=size)).shape == expected


def test_gradients_reach_every_parameter_and_every_feature_it_reads(make):
    head, given = make(), features()
    head(given).square().mean().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []
    levels = [given.pyramid[0], given.pyramid[-1]]
    if isinstance(head, Conv | ASPPHead):  # one level, its finest or coarsest
        levels = levels[:1] if isinstance(head, Conv) else levels[1:]
    read = {"dense": levels, "pooled": [given.pooled], "token": [given.tokens]}[head.kind]
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in read)


def test_a_batch_of_one_can_be_trained(make):
    head = make().train()
    head(features(batch=1)).sum().backward()


def test_examples_do_not_touch_one_another_in_evaluation(make):
    head, given = make().eval(), features(batch=2)
    whole = head(given)
    for i in range(2):
        alone = features(batch=2)
        alone.pyramid = [level[i : i + 1] for level in given.pyramid]
        alone.pooled, alone.tokens = given.pooled[i : i + 1], given.tokens[i : i + 1]
        torch.testing.assert_close(head(alone), whole[i : i + 1], atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights(make):
    first, second, other = (make(seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_bfloat16_autocast(make):
    head, given = make().eval(), features()
    exact = head(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(given)
    assert (exact - rough.float()).abs().max() <= 0.1 * exact.abs().max()


def test_state_dict_round_trip(make):
    head, other = make(seed=0).eval(), make(seed=1).eval()
    other.load_state_dict(head.state_dict(), strict=True)
    assert torch.equal(head(features()), other(features()))
