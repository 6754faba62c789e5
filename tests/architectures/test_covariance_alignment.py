"""Algorithm 1 written out, and what the matrices start as."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from runner.architectures.covariance_alignment import CovarianceAlignment
from runner.architectures.hard_sharing import HardSharing
from runner.backbones.mlp import MLP
from runner.backbones.resnet import ResNet
from runner.backbones.segnet import SegNet
from runner.types import Group
from tests.architectures.samples import task
from tests.architectures.test_sharing import HEADS
from tests.backbones.samples import SPECS, example

TABLE = {name: task(name, "pooled", 2) for name in ("income", "married")}
IMAGE = {"depth": task("depth", "dense", 1), "edge": task("edge", "dense", 1)}
BACKBONES = {"table": MLP, "image": ResNet, "unpooling": SegNet}


def make(kind, backbone, tasks, spec):
    torch.manual_seed(0)
    return kind(lambda: backbone(SPECS[spec], size="tiny"), tasks, **HEADS)


def test_a_task_reads_its_turned_input():
    model = make(CovarianceAlignment, MLP, TABLE, "table")
    with torch.no_grad():
        for matrix in model.alignments.values():
            matrix.add_(0.3 * torch.randn_like(matrix))
    group = Group("t", example("table"))
    entry, _ = model.backbone.begin(group.inputs)
    predictions = model(group, list(TABLE))
    for name, head in model.heads.items():
        x = entry @ model.alignments[name]
        for layer in model.backbone.layers:
            x = F.relu(x @ layer[0].weight.T + layer[0].bias)
        linear = next(m for m in head.modules() if isinstance(m, torch.nn.Linear))
        torch.testing.assert_close(predictions[name], F.linear(x, linear.weight, linear.bias))


@pytest.mark.parametrize("kind", BACKBONES)
def test_it_starts_as_hard_sharing(kind):
    spec, tasks = ("table", TABLE) if kind == "table" else ("image", IMAGE)
    aligned, plain = (make(k, BACKBONES[kind], tasks, spec).eval() for k in (CovarianceAlignment, HardSharing))
    plain.load_state_dict(aligned.state_dict(), strict=False)
    group = Group("g", example(spec))
    got, want = aligned(group, list(tasks)), plain(group, list(tasks))
    for name in tasks:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-3)


def test_looking_at_the_stem_changes_nothing():
    backbone = ResNet(SPECS["image"], size="tiny")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert backbone.training and backbone.entry_channels() == backbone.begin(example("image"))[0].shape[1]
    assert backbone.training
    backbone.load_state_dict(before)
    assert backbone.entry_channels() > 0
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
