"""TaskExpert against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runner.architectures.layer_maps import keep_layers, layer_features
from runner.architectures.task_expert import MemorialExperts
from runner.backbones.resnet import ResNet
from runner.config.build import build
from runner.training.cost import forward_cost
from tests.architectures.test_cost import backbone_flops
from tests.architectures.worlds import TASKS, count, images, make
from tests.backbones.samples import SPECS, option

HEAD = {"_target_": "runner.architectures.heads.bottleneck.BottleneckHead", "blocks": 0}
C, G, E, T = 32, 8, 3, 3


@pytest.mark.parametrize(("backbone", "widths"), [("resnet", (32, 64, 128)), ("vit", (64, 64, 64, 64))])
def test_parameters_are_those_of_the_formula(backbone, widths):
    model = make("task_expert", backbone=backbone, channels=C, experts=E, dense_head=HEAD)
    gate = 2 * C * G + G + 9 * G * G + 2 * G + G * G + G + G * (E + 1) + E + 1
    layers = sum(w * C + 2 * C + E * (9 * C * C + 2 * C) + T * (gate + 2 * (C * C + C) + 2 * C) for w in widths)
    heads = sum(C * t.out_channels + t.out_channels for t in TASKS.values())
    assert count(model) - count(model.backbone) == layers + T * (C + 9 * C * C + 2 * C) + heads


def test_flops_are_those_of_the_formula():
    model = make("task_expert", channels=C, experts=E, dense_head=HEAD)
    n, fine = 64, 256  # cells of the finest level that is read, and of the predictions
    task = 2 * n * 2 * C * G + 2 * n * 9 * G * G + 2 * G * G + 2 * n * G * (E + 1) + 4 * n * C * C
    layers = sum(2 * n * w * C + E * 2 * n * 9 * C * C + T * task for w in (32, 64, 128))
    expected = layers + T * 2 * fine * 9 * C * C + 2 * fine * C * 9
    found = forward_cost(model, images(batch=1), list(TASKS)).flops
    assert found == pytest.approx(backbone_flops() + expected, rel=0.02)


def test_a_task_reads_weighs_and_writes():
    torch.manual_seed(0)
    layer = MemorialExperts(["a", "b"], 4, 2, 8, "group").double()
    x, memory = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    made = layer(x, {"b": memory})
    assert list(made) == ["b"]
    entered = layer.enter(x)
    experts = [expert(entered) for expert in layer.experts]
    scores = layer.gates["b"](memory, sum(experts) / 2)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    read = layer.read["b"](memory)
    decoded = weights[:, :1] * read + weights[:, 1:2] * experts[0] + weights[:, 2:] * experts[1]
    written = (memory + layer.write["b"](decoded)).permute(0, 2, 3, 1)
    torch.testing.assert_close(made["b"], F.layer_norm(written, (8,)).permute(0, 3, 1, 2))


def test_gates_see_the_image_here_and_as_a_whole():
    torch.manual_seed(0)
    gate = MemorialExperts(["a"], 4, 2, 8, "group").eval().gates["a"]
    memory, seen = torch.randn(1, 8, 9, 9), torch.randn(1, 8, 9, 9)
    first = gate(memory, seen)
    other = seen.clone()
    other[..., 8, 8] += 5
    second = gate(memory, other)
    assert not torch.allclose(first[..., 8, 8], second[..., 8, 8])
    assert not torch.allclose(first[..., 0, 0], second[..., 0, 0])


def test_layers_of_a_plain_transformer_are_its_quarters():
    vit = build({**option("backbone", "vit"), "size": "tiny"}, SPECS["image"], where="backbone").eval()
    spec = keep_layers(vit)
    assert spec.channels == (64,) * 4 and spec.strides == (16,) * 4
    inputs = images(size=(70, 51)).inputs
    features = layer_features(vit, inputs)
    assert [tuple(x.shape[1:]) for x in features.pyramid] == [(64, 5, 4)] * 4
    torch.testing.assert_close(features.pooled, vit(inputs).pooled)
    hidden = vit.trunk(vit._prepare(inputs["pixels"]), interpolate_pos_encoding=True, output_hidden_states=True)
    second = hidden.hidden_states[2][:, 1:].transpose(1, 2).unflatten(2, (6, 4))[..., :5, :4]
    torch.testing.assert_close(features.pyramid[1], second)


def test_a_pyramid_is_read_without_its_finest_level_where_it_has_four():
    net = ResNet(SPECS["image"], size="tiny")
    assert keep_layers(net).strides == (8, 16, 32)
    assert keep_layers(net).strides == (8, 16, 32)  # three are all read
