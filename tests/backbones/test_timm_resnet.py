"""timm's ResNet checkpoints against the network as torchvision defines it, written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.backbones.resnet import ResNet
from runner.errors import UserError
from runner.specs import InputSpec

IMAGES = InputSpec("image", size=(64, 64))
WIDTHS = (4, 8, 12, 16)


def tensors(bottleneck: bool, depths: tuple[int, ...] = (2, 1, 1, 2)) -> dict[str, Tensor]:
    """A narrow ResNet by timm's names; no two tensors alike."""
    g = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        made[f"{name}.weight"] = torch.randn(out, into, side, side, generator=g) * (2 / (into * side * side)) ** 0.5

    def norm(name: str, width: int) -> None:
        for kind, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            made[f"{name}.{kind}"] = low + torch.rand(width, generator=g)
        made[f"{name}.num_batches_tracked"] = torch.tensor(3)

    conv("conv1", WIDTHS[0], 3, 7)
    norm("bn1", WIDTHS[0])
    into = WIDTHS[0]
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        out = 4 * width if bottleneck else width
        for block in range(depth):
            here = f"layer{stage + 1}.{block}"
            sizes = [(width, into, 1), (width, width, 3), (out, width, 1)]
            for number, (o, i, side) in enumerate(sizes if bottleneck else [(width, into, 3), (out, width, 3)], 1):
                conv(f"{here}.conv{number}", o, i, side)
                norm(f"{here}.bn{number}", o)
            if block == 0 and (stage > 0 or into != out):
                conv(f"{here}.downsample.0", out, into, 1)
                norm(f"{here}.downsample.1", out)
            into = out
    made["fc.weight"], made["fc.bias"] = torch.zeros(10, into), torch.zeros(10)
    return made


def torchvision_stages(t: dict[str, Tensor], x: Tensor, bottleneck: bool) -> list[Tensor]:
    """What torchvision's ResNet computes after each of its four layers, in evaluation."""

    def unit(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = t[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(t[f"{bn}.{kind}"] for kind in kinds), eps=1e-5)

    x = F.max_pool2d(F.relu(unit(x, "conv1", "bn1", 2)), 3, 2, 1)
    outputs = []
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in t:
            here, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if bottleneck:
                y = F.relu(unit(x, f"{here}.conv1", f"{here}.bn1"))
                y = F.relu(unit(y, f"{here}.conv2", f"{here}.bn2", stride))
                y = unit(y, f"{here}.conv3", f"{here}.bn3")
            else:
                y = F.relu(unit(x, f"{here}.conv1", f"{here}.bn1", stride))
                y = unit(y, f"{here}.conv2", f"{here}.bn2")
            if f"{here}.downsample.0.weight" in t:
                x = unit(x, f"{here}.downsample.0", f"{here}.downsample.1", stride)
            x = F.relu(x + y)
            block += 1
        outputs.append(x)
    return outputs


def write(folder: Path, state: dict[str, Tensor], architecture: str = "resnet50") -> str:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 10}))
    return str(folder)


def resnet(pretrained: str, size: int | None = None) -> ResNet:
    return ResNet(IMAGES, size=size, pretrained=pretrained)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_it_computes_what_torchvision_computes(tmp_path, caplog, bottleneck):
    state = tensors(bottleneck)
    backbone = resnet(write(tmp_path / "timm", state, "resnet50" if bottleneck else "resnet18")).eval()
    pixels = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = backbone.stages(pixels)
    for ours, theirs in zip(found, torchvision_stages(state, pixels, bottleneck), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]  # the classifier is no surprise


@pytest.mark.parametrize(
    ("change", "architecture", "words"),
    [
        ({}, "resnetv2_50", "is a checkpoint of 'resnetv2_50'"),
        ({}, "resnet50d", "is a checkpoint of 'resnet50d'"),
        ({"layer1.0.se.fc1.weight": torch.ones(2)}, "resnet50", r"computes otherwise .* layer1\.0\.se\.fc1"),
        ({"layer1.0.bn1.weight": None}, "resnet50", "lacks 1 of the trunk's tensors"),
        ({"layer2.0.conv3.weight": None}, "resnet50", "lacks tensors of a ResNet"),
        ({"bn1.bias": torch.ones(3)}, "resnet50", "another shape"),
    ],
)
def test_other_networks_are_refused(tmp_path, change, architecture, words):
    state = {k: t for k, t in (tensors(True) | change).items() if t is not None}
    with pytest.raises(UserError, match=words):
        resnet(write(tmp_path / "other", state, architecture))


def test_the_size_is_a_claim_that_is_checked(tmp_path):
    with pytest.raises(UserError, match=r"is not of backbone.size=50"):
        resnet(write(tmp_path / "timm", tensors(True)), size=50)
