"""Units of real backbones: groups that are found, and the ones that must not be."""

from __future__ import annotations

import pytest
import torch

from runner.architectures.hard_sharing import HardSharing
from runner.backbones.resnet import ResNet
from runner.backbones.vit import ViT
from runner.merging.data import TaskData, without_targets
from runner.merging.units import UnitGroup, find_units
from runner.specs import InputSpec
from runner.tasks.classification import Classification
from runner.types import Group
from tests.merging.toy import body, make


def images(backbone) -> TaskData:
    torch.manual_seed(0)
    tasks = {"a": Classification("a", num_classes=3)}
    linear = {"_target_": "runner.architectures.heads.pooled.Linear"}
    model = HardSharing(lambda: backbone, tasks, dense_head={}, pooled_head=linear, token_head={}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: no two channels alike
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    group = Group("a", {"pixels": torch.rand(4, 3, 32, 32)}, {"a": torch.zeros(4, dtype=torch.long)})
    return TaskData(model, tasks, {"a": without_targets(group)}, None, {"a": group})


def units(data: TaskData) -> list[UnitGroup]:
    tensors = body(data.model)
    names = {n for n, t in tensors.items() if t.is_floating_point() and "running" not in n}
    return find_units(data, tensors, names)


def test_a_chain():
    _, data = make()
    first, second = units(data)
    assert first.axes == {
        "backbone.first.weight": 0, "backbone.first.bias": 0, "backbone.second.weight": 1,
        "backbone.norm.weight": 0, "backbone.norm.bias": 0,
    }  # fmt: skip
    assert first.readers == ["backbone.second"] and not first.headed
    assert second.axes == {"backbone.second.weight": 0, "backbone.second.bias": 0} and second.headed


def test_residual_streams_share_their_units():
    data = images(ResNet(InputSpec("image"), size="tiny"))
    found = units(data)
    sizes = [(g.size, len(g.writers), g.headed) for g in found]
    # the stem with the stage that has no shortcut; inside every block; the stages behind shortcuts
    assert sizes == [(16, 2, False), (16, 1, False), (32, 1, False), (32, 2, False), (64, 1, False), (64, 2, False),
                     (128, 1, False), (128, 2, True)]  # fmt: skip
    stem = found[0]
    assert any("shortcut" in n and a == 1 for n, a in stem.axes.items())
    assert sum(n.endswith("running_mean") for n in stem.axes) == 2


def test_what_ties_channels_together_is_left_out():
    with_groups = units(images(ResNet(InputSpec("image"), size="tiny", norm="group")))
    assert with_groups == []  # GroupNorm
    vit = units(images(ViT(InputSpec("image"), size="tiny")))
    assert [g.size for g in vit if not g.headed] == [256] * 4  # hidden units of the MLPs; heads of attention are not
    (stream,) = (g for g in vit if g.headed)  # with class token and position embeddings
    assert stream.size == 64 and any("position" in n for n in stream.axes) and any("cls" in n for n in stream.axes)


@pytest.mark.parametrize("make_backbone", [lambda: ResNet(InputSpec("image"), size="tiny")])
def test_permuting_every_group_at_once_leaves_predictions_alone(make_backbone):
    data = images(make_backbone())
    tensors = {**body(data.model)}
    expected = data.forward(tensors, data.unlabelled["a"], ["a"])["a"]
    for number, group in enumerate(units(data)):
        if not group.headed:
            order = torch.randperm(group.size, generator=torch.Generator().manual_seed(number))
            tensors |= {n: tensors[n].index_select(a, order) for n, a in group.axes.items()}
    found = data.forward(tensors, data.unlabelled["a"], ["a"])["a"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
