"""MTAN's sizes against its paper and released code, and its forward pass against one written out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.architectures.mtan import Bottleneck
from tests.architectures.samples import task
from tests.architectures.worlds import TASKS, count, images, make

CONV = {"_target_": "runner.architectures.heads.conv.Conv"}
NYUV2 = {n: task(n, "dense", c) for n, c in (("segmentation", 13), ("depth", 1), ("normals", 3))}
SEGNET = {"name": "segnet", "size": "base"}


def test_segnet_has_the_size_of_the_released_code():
    """24,981,069 parameters for segmentation alone, the number the authors' scripts divide by."""
    with torch.device("meta"):
        alone = {"segmentation": NYUV2["segmentation"]}
        assert count(make("single_task", alone, SEGNET, dense_head=CONV)) == 24_981_069


def test_mtan_has_the_published_size_on_nyuv2():
    """Table 2 of the paper: 1.77 times a single-task network."""
    with torch.device("meta"):
        assert round(count(make("mtan", NYUV2, SEGNET, dense_head=CONV)) / 24_981_069, 2) == 1.77


def test_mtan_on_resnet_50_has_the_size_of_its_parts():
    with torch.device("meta"):
        hard = count(make("hard_sharing", NYUV2, {"name": "resnet", "size": 50}))
        mine = count(make("mtan", NYUV2, {"name": "resnet", "size": 50}))
    widths = (256, 512, 1024, 2048)

    def attention(before, width):
        inside = width // 4
        return before * inside + inside + 2 * inside + inside * width + width + 2 * width

    def bottleneck(before, width):
        inside = width // 4
        body = before * inside + 9 * inside * inside + inside * width + 2 * (inside + inside + width)
        return body + before * width + 2 * width

    expected = 3 * sum(attention(w if i == 0 else 2 * w, w) for i, w in enumerate(widths))
    expected += sum(bottleneck(a, b) for a, b in pairwise(widths))
    assert mine - hard == expected


def run_conv(block, x):
    return F.relu(F.batch_norm(F.conv2d(x, block[0].weight, block[0].bias, padding=1), *_statistics(block[1])))


def run_attention(layers, x):
    x = F.relu(F.batch_norm(F.conv2d(x, layers[0].weight, layers[0].bias), *_statistics(layers[1])))
    return torch.sigmoid(F.batch_norm(F.conv2d(x, layers[3].weight, layers[3].bias), *_statistics(layers[4])))


def _statistics(norm):
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


def test_the_forward_pass_on_segnet_written_out():
    """Figure 2 of the paper, five times down and five times up."""
    model = make("mtan", backbone="segnet", dense_head=CONV).eval()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.running_mean = 0.1 * torch.randn(module.running_mean.shape, generator=generator)
    group, net = images(), model.backbone
    x = (group.inputs["pixels"] - net.mean) / net.std
    first, last, pooled, switches = [], [], [], []
    for stage in net.encoder:
        first.append(run_conv(stage[0], x))
        y = first[-1]
        for block in stage[1:]:
            y = run_conv(block, y)
        last.append(y)
        x, where = F.max_pool2d(y, 2, return_indices=True)
        pooled.append(x)
        switches.append(where)
    up, out = [], []
    for s in reversed(range(5)):
        up.append(F.max_unpool2d(x, switches[s], 2))
        x = up[-1]
        for block in net.decoder[s]:
            x = run_conv(block, x)
        out.append(x)
    made = model(group, list(TASKS))
    for name in TASKS:
        carried = None
        for j in range(5):
            seen = first[j] if j == 0 else torch.cat([first[j], carried], 1)
            attended = run_attention(model.attention[j][name], seen) * last[j]
            carried = F.max_pool2d(run_conv(model.transfer[j][0], attended), 2)
        for j in range(5):
            carried = F.interpolate(carried, scale_factor=2, mode="bilinear", align_corners=False)
            carried = run_conv(model.transfer[4 + j][-1], carried)
            attended = run_attention(model.attention[5 + j][name], torch.cat([up[j], carried], 1)) * out[j]
            carried = attended
        torch.testing.assert_close(made[name], model.heads[name].layers(attended), atol=1e-5, rtol=1e-4)


def test_the_shared_part_runs_once_and_attention_once_per_task():
    model, calls = make("mtan"), []
    for name, module in model.named_modules():
        if name in ("backbone.trunk.embedder", "backbone.trunk.encoder.stages.3.layers.0") or (
            name.startswith("attention.2.") and name.count(".") == 2
        ):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(images(), ["depth", "normals"])
    assert sorted(calls) == [
        "attention.2.depth",
        "attention.2.normals",
        "backbone.trunk.embedder",
        "backbone.trunk.encoder.stages.3.layers.0",
    ]


def test_with_open_masks_it_is_hard_sharing():
    model = make("mtan", norm="none").eval()
    for layers in model.attention:
        for attention in layers.values():
            nn.init.zeros_(attention[3].weight)
            nn.init.constant_(attention[3].bias, 100.0)
    expected = {t: model.heads[t](model.backbone(images().inputs)) for t in TASKS}
    for name, prediction in model(images(), list(TASKS)).items():
        torch.testing.assert_close(prediction, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("transfer", ["conv", "bottleneck"])
def test_the_way_between_stages_can_be_chosen(transfer):
    model = make("mtan", transfer=transfer, reduction=2)
    assert isinstance(model.transfer[0][0], Bottleneck) == (transfer == "bottleneck")
    assert [layers["depth"][0].out_channels for layers in model.attention] == [8, 16, 32, 64]
