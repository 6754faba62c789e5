"""What heads compute, against independent computations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.architectures.heads.aspp import ASPPHead
from runner.architectures.heads.deeplab import DeepLab
from runner.architectures.heads.fcn import FCN
from runner.architectures.heads.layers import average_bins, conv_block, normalisation
from runner.architectures.heads.pooled import MLP
from runner.architectures.heads.resize import upsample
from runner.architectures.heads.upernet import UPerNet
from runner.backbones.resnet import ResNet
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec
from runner.types import Features
from tests.architectures.samples import SPEC, features


def test_upsampling_is_stretching_where_the_size_divides():
    x = torch.randn(2, 3, 8, 6)
    expected = F.interpolate(x, size=(32, 24), mode="bilinear", align_corners=False)
    assert torch.equal(upsample(x, 4, (32, 24)), expected)
    assert torch.equal(upsample(x, 1, (8, 6)), x)


@pytest.mark.parametrize("size", [29, 30, 31, 32])
def test_upsampling_keeps_cells_over_their_pixels(size):
    """A map that holds the position of its cells' centres gives the position of every pixel's centre."""
    stride = 4
    cells = (torch.arange(math.ceil(size / stride)) + 0.5) * stride
    x = cells.view(1, 1, 1, -1).expand(1, 1, 2, -1)
    out = upsample(x, stride, (8, size))[0, 0, 0]
    inside = slice(stride // 2, len(cells) * stride - stride // 2)  # beyond the outer centres values are repeated
    pixels = torch.arange(size) + 0.5
    torch.testing.assert_close(out[inside], pixels[inside])


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(2, 2), (7, 7), (14, 18), (5, 3)], ids=str)
def test_average_bins_are_adaptive_pooling(bins, size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    expected, got = F.adaptive_avg_pool2d(x, bins), average_bins(x, bins)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(expected)
    [a], [b] = (torch.autograd.grad((y * weight).sum(), x) for y in (expected, got))
    torch.testing.assert_close(a, b)


def test_norms():
    assert isinstance(normalisation("batch", 8), nn.BatchNorm2d)
    assert normalisation("group", 96).num_groups == 32
    assert normalisation("group", 20).num_groups == 4
    assert normalisation("group", 1).num_groups == 1
    assert conv_block(3, 8, 3, "none")[0].bias is not None
    assert conv_block(3, 8, 3, "batch")[0].bias is None


def test_fcn_without_convolutions_is_the_sum_of_its_levels():
    """Level by level: what each adds is its own linear map, upsampled step by step."""
    torch.manual_seed(0)
    head = FCN(SPEC, 2, channels=4, convs=0, norm="none").eval()
    given = features(size=(64, 96))
    total = head.out.bias.view(1, -1, 1, 1).expand(2, 2, 64, 96)
    for i, lateral in enumerate(head.lateral):
        x = torch.einsum("oc,bchw->bohw", lateral.weight[:, :, 0, 0], given.pyramid[i]) + lateral.bias.view(1, -1, 1, 1)
        for factor in [2] * i + [4]:
            x = F.interpolate(x, size=[side * factor for side in x.shape[-2:]], mode="bilinear", align_corners=False)
        total = total + torch.einsum("oc,bchw->bohw", head.out.weight[:, :, 0, 0], x)
    torch.testing.assert_close(head(given), total, atol=1e-5, rtol=1e-5)


def test_deeplab_rates_are_those_of_its_convolutions():
    head = DeepLab(SPEC, 3, channels=8, rates=[6, 12, 18])
    assert [block[0].dilation[0] for block in head.aspp.local] == [1, 6, 12, 18]
    assert [block[0].kernel_size[0] for block in head.aspp.local] == [1, 3, 3, 3]


def test_aspp_sees_the_whole_image():
    torch.manual_seed(0)
    head = DeepLab(SPEC, 1, channels=8, rates=[1], norm="none", dropout=0.0).eval()
    given = features(size=(256, 256), batch=1)
    out = head(given)[0, 0, 0, 0]
    out.backward()
    assert (given.pyramid[-1].grad[0].abs().sum(0) > 0).all()
    assert (given.pyramid[0].grad[0].abs().sum(0) > 0).sum() < 50  # fine features stay local


def test_the_network_of_libmtl_has_its_published_size():
    """ResNet-50 and three ASPP heads, which classification, depth and normals of NYUv2 share: 71.89 M parameters."""
    spec = FeatureSpec((256, 512, 1024, 2048), (4, 8, 8, 8), 2048)
    with torch.device("meta"):
        heads = [ASPPHead(spec, channels, rates=[12, 24, 36], whole_norm=True) for channels in (13, 1, 3)]
        trunk = ResNet(InputSpec("image", size=(288, 384)), size=50, output_stride=8)
    total = sum(p.numel() for part in (trunk, *heads) for p in part.parameters())
    assert round(total / 1e6, 2) == 71.89


def test_aspp_is_what_torchvision_builds():
    """In evaluation, against its layers one by one."""
    torch.manual_seed(0)
    head = ASPPHead(FeatureSpec((6, 8), (4, 8), 8), 3, channels=5, rates=[1, 2], dropout=0.3, whole_norm=True).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 7, 9)

    def unit(block, x, padding=0, dilation=1):
        convolution, norm, _ = block
        y = F.conv2d(x, convolution.weight, padding=padding, dilation=dilation)
        return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    branches = [unit(head.aspp.local[0], x)]
    branches += [unit(head.aspp.local[1 + i], x, rate, rate) for i, rate in enumerate((1, 2))]
    branches.append(unit(head.aspp.whole, F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, 7, 9))
    y = unit(head.decode, unit(head.aspp.project[0], torch.cat(branches, 1)), 1)
    expected = F.interpolate(F.conv2d(y, head.out.weight, head.out.bias), scale_factor=8, mode="bilinear")
    features = Features(size=(56, 72), pyramid=[torch.zeros(2, 6, 14, 18), x])
    torch.testing.assert_close(head(features), expected)


def test_deeplab_needs_two_levels():
    with pytest.raises(UserError, match="two levels"):
        DeepLab(FeatureSpec((8,), (4,), 8), 3, rates=[6])


def test_upernet_reads_every_level():
    head, given = UPerNet(SPEC, 3, channels=8, bins=[1, 2]), features()
    head(given).square().sum().backward()
    assert all(level.grad.abs().sum() > 0 for level in given.pyramid)


def test_published_sizes_of_heads():
    """UPerNet on Swin-T: 60 M in all with an auxiliary head in its paper; DeepLabV3+'s on ResNet-50: 40.3 - 23.5 M."""
    swin = FeatureSpec((96, 192, 384, 768), (4, 8, 16, 32), 768)
    resnet = FeatureSpec((256, 512, 1024, 2048), (4, 8, 16, 16), 2048)
    with torch.device("meta"):
        count = lambda net: sum(p.numel() for p in net.parameters()) / 1e6  # noqa: E731
        assert count(UPerNet(swin, 150, bins=[1, 2, 3, 6])) == pytest.approx(31.5, abs=0.1)
        assert count(DeepLab(resnet, 21, rates=[6, 12, 18])) == pytest.approx(16.84, abs=0.01)


def test_mlp_head():
    head = MLP(SPEC, 3, hidden=[10, 6])
    assert [(m.in_features, m.out_features) for m in head.layers if isinstance(m, nn.Linear)] == [
        (32, 10),
        (10, 6),
        (6, 3),
    ]
