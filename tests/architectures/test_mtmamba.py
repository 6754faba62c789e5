"""MTMamba and MTMamba++ against formulas written out by hand, and against the published size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from runner.architectures.mtmamba import CrossTask
from runner.architectures.mtmamba_pp import GuidedCrossTask
from runner.backbones.resnet import ResNet
from runner.config.build import build
from runner.errors import UserError
from runner.training.cost import forward_cost
from tests.architectures.samples import task
from tests.architectures.test_cost import backbone_flops
from tests.architectures.worlds import TASKS, count, images, make
from tests.backbones.samples import SPECS, option

NYUD = {n: task(n, "dense", c) for n, c in (("segmentation", 40), ("depth", 1), ("normals", 3), ("edge", 1))}
HEAD = {"_target_": "runner.architectures.heads.bottleneck.BottleneckHead", "blocks": 0}
WIDTHS, CELLS, K, N = (128, 64, 32, 16), (4, 16, 64, 256), 3, 16
"""Of the tiny ResNet for one image of 64 × 64, coarse to fine; tasks; states."""


def scan(inner, rank):
    """Parameters of a scan in four directions, with its norm."""
    return 4 * ((rank + 2 * N) * inner + rank * inner + inner + N * inner + inner) + 2 * inner


def mixer(before, c, gated=False, guided=False):
    inner = 2 * c
    return before * inner * (1 + gated) + guided * c * inner + 10 * inner + scan(inner, math.ceil(c / 16))


def gated_mixer(c, guided=False):
    return mixer(c, c, True, guided) + 2 * c * c


def scan_flops(c, cells):
    """Projections to Δ, B and C, those of Δ, and 9 for each state."""
    inner, rank = 2 * c, math.ceil(c / 16)
    return cells * 4 * inner * (2 * (2 * rank + 2 * N) + 9 * N)


def mixer_flops(before, c, cells, gated=False, guided=False):
    inner = 2 * c
    return cells * 2 * inner * (before * (1 + gated) + guided * c + 9) + scan_flops(c, cells)


def heads(channels, per_cell=False):
    return sum(channels * t.out_channels + (0 if per_cell else t.out_channels) for t in TASKS.values())


def stages():
    return zip(WIDTHS, WIDTHS[1:], CELLS, CELLS[1:], strict=False)


def common_parameters():
    """Expanding, joining and two self-task blocks of every task and stage."""
    return K * sum(4 * b * c + 2 * c + 2 * c * c + c + 2 * (2 * c + gated_mixer(c)) for b, c, _, _ in stages())


def common_flops():
    own = sum(2 * (mixer_flops(c, c, n, True) + 2 * n * 2 * c * c) for _, c, _, n in stages())
    return K * (own + sum(2 * m * 4 * b * c + 2 * n * 2 * c * c for b, c, m, n in stages()))


EXPECTED = {
    "mtmamba": (
        sum(2 * K * c + mixer(K * c, c) + K * (2 * c + mixer(c, c) + 4 * c * c) for c in WIDTHS[1:])
        + K * (16 * 16 * 16 + 2 * 16)
        + heads(16),
        sum(
            mixer_flops(K * c, c, n) + K * (mixer_flops(c, c, n) + 2 * n * 4 * c * c)
            for c, n in zip(WIDTHS[1:], CELLS[1:], strict=True)
        )
        + K * 2 * 256 * 16 * 16 * 16
        + 2 * 64 * 64 * heads(16, per_cell=True),
    ),
    "mtmamba_pp": (
        sum(2 * K * c + K * c * c + c + 9 * c * c + c + K * (2 * c + gated_mixer(c, guided=True)) for c in WIDTHS[1:])
        + K * (9 * 16 * 96 + 2 * 96)
        + heads(96),
        sum(
            2 * n * c * c * (K + 9) + K * (mixer_flops(c, c, n, True, True) + 2 * n * 2 * c * c)
            for c, n in zip(WIDTHS[1:], CELLS[1:], strict=True)
        )
        + K * 2 * 256 * 9 * 16 * 96
        + 2 * 256 * heads(96, per_cell=True),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_and_flops_are_those_of_the_formulas(name):
    model = make(name, dense_head=HEAD)
    parameters, flops = EXPECTED[name]
    assert count(model) - count(model.backbone) == common_parameters() + parameters
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(backbone_flops() + common_flops() + flops, rel=0.02)


@pytest.mark.parametrize(("name", "millions"), [("mtmamba", 308), ("mtmamba_pp", 315)])
def test_the_size_is_the_published_one(name, millions):
    """With Swin-L and the four tasks of NYUD-v2, as the tables of both papers say."""
    with torch.device("meta"):
        model = make(name, NYUD, {"name": "swin", "size": "large"}, dense_head=HEAD)
    assert round(count(model) / 1e6) == millions


def test_the_gate_blends_what_is_shared_and_what_is_own():
    torch.manual_seed(0)
    block = CrossTask(["a", "b"], 8, 2, 4, 0.0).double().eval()
    x = {t: torch.randn(1, 3, 4, 8, dtype=torch.float64) for t in "ab"}
    shared = block.share(F.layer_norm(torch.cat([x["a"], x["b"]], -1), (16,)))
    normal = F.layer_norm(x["b"], (8,))
    gate = 1 / (1 + torch.exp(-normal @ block.gate["b"].weight.T))
    blend = gate * shared + (1 - gate) * block.own["b"](normal)
    made = block(x, ["b"])
    assert list(made) == ["b"]
    torch.testing.assert_close(made["b"], x["b"] + blend @ block.leave["b"].weight.T)


def test_the_guided_block_scans_its_own_features():
    """What is shared decides on Δ, B and C alone: where a task's own scanned map is zero nothing comes out."""
    torch.manual_seed(0)
    block = GuidedCrossTask(["a", "b"], 8, 2, 4, 0.0).eval()
    x = {t: torch.randn(1, 3, 4, 8) for t in "ab"}
    moved = {**x, "a": x["a"] + 1 + torch.randn(1, 3, 4, 8)}
    assert not torch.allclose(block(x, ["b"])["b"], block(moved, ["b"])["b"])
    torch.nn.init.zeros_(block.mix["b"].mix.local.weight)
    torch.nn.init.zeros_(block.mix["b"].mix.local.bias)
    torch.testing.assert_close(block(x, ["b"])["b"], x["b"])
    torch.testing.assert_close(block(moved, ["b"])["b"], x["b"])


def test_stochastic_depth_falls_from_the_first_block_to_the_last():
    model = make("mtmamba", drop_path=0.2)
    rates = [
        [b.drop_path.rate for b in own["depth"]] + [cross.drop_path.rate]
        for own, cross in zip(model.own, model.cross, strict=True)
    ]
    assert [r for stage in rates for r in stage] == pytest.approx([0.2 * (1 - i / 8) for i in range(9)])


def test_any_pyramid_of_two_levels_or_more():
    for backbone in ({"name": "resnet", "output_stride": 8}, "vit", "segformer"):
        made = make("mtmamba_pp", backbone=backbone).eval()(images(size=(70, 51)), ["normals"])
        assert made["normals"].shape == (2, 3, 70, 51)


def test_a_single_level_is_refused():
    def one_level():
        backbone = ResNet(SPECS["image"], size="tiny")
        backbone.keep_levels([3])
        return backbone

    with pytest.raises(UserError, match="this backbone has one"):
        build(option("architecture", "mtmamba"), one_level, TASKS)
