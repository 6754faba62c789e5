"""LeNet and CNN-9: the sizes of the published networks, and the same numbers as plain layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.architectures.heads.pooled import MLP
from runner.specs import FeatureSpec, InputSpec
from tests.backbones.samples import backbone, option

MNIST = InputSpec("image", size=(28, 28))
FACES = InputSpec("image", size=(64, 64))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_multilenet_has_27450_parameters_with_two_heads() -> None:
    net = backbone(option("backbone", "lenet"), MNIST)
    heads = [MLP(FeatureSpec(dim=50), 10, hidden=[50]) for _ in range(2)]
    assert count(net) == 21_330
    assert count(net, *heads) == 27_450


def test_lenet_is_the_published_network_on_28_pixels() -> None:
    net = backbone(option("backbone", "lenet"), MNIST).eval()
    grey = torch.rand(3, 1, 28, 28)
    x = (grey - 0.1307) / 0.3081
    first, second = (block[0] for block in net.convolutions)
    x = F.relu(F.max_pool2d(F.conv2d(x, first.weight, first.bias), 2))
    x = F.relu(F.max_pool2d(F.conv2d(x, second.weight, second.bias), 2)).flatten(1)
    expected = F.relu(F.linear(x, net.linear.weight, net.linear.bias))
    torch.testing.assert_close(net({"pixels": grey.expand(-1, 3, -1, -1)}).pooled, expected)


def test_lenet_drops_whole_channels() -> None:
    net = backbone(option("backbone", "lenet"), MNIST, dropout=1.0).train()
    pooled = net({"pixels": torch.rand(2, 3, 28, 28)}).pooled
    torch.testing.assert_close(pooled, F.relu(net.linear.bias).expand(2, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_lenet_reads_grey_or_colour(channels) -> None:
    net = backbone(option("backbone", "lenet"), MNIST, channels=channels).eval()
    pixels = torch.rand(2, 3, 28, 28)
    same = torch.equal(net({"pixels": pixels}).pooled, net({"pixels": pixels.flip(1)}).pooled)
    close = torch.allclose(net({"pixels": pixels}).pooled, net({"pixels": pixels.flip(1)}).pooled, atol=1e-6)
    assert close == (channels == 1) or same


def test_cnn9_has_the_published_parameters_and_numbers() -> None:
    """FAMO's network: 5,176,640 parameters without the 40 heads, and pooling to one cell before the linear layers."""
    net = backbone(option("backbone", "cnn9"), FACES).eval()
    assert count(net) == 5_176_640
    net = backbone(option("backbone", "cnn9"), FACES, size="tiny").eval()
    pixels = torch.rand(2, 3, 64, 64)
    x = pixels
    for i, stage in enumerate(net.convolutions):
        x = F.max_pool2d(x, 2) if i else x
        for convolution, norm, _ in stage:
            x = F.conv2d(x, convolution.weight, padding=1)
            x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    for layer, norm, _ in net.linear:
        x = F.relu(F.batch_norm(x @ layer.weight.T, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    torch.testing.assert_close(net({"pixels": pixels}).pooled, x)
