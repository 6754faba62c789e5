"""HRNet against the published networks' counts, names and equations."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from runner.backbones.hrnet import HRNet, apart, side_by_side
from runner.backbones.hrnet_layers import PRESETS, Exchange, HighResolutionNet
from runner.errors import UserError
from tests.backbones.samples import SPECS, backbone, example, option

IMAGE = SPECS["image"]
CLASSIFIERS = {  # parameters of the published networks with their heads for 1,000 classes
    "w18_small": 13_187_464,
    "w18_small_v2": 15_597_464,
    "w18": 21_299_004,
    "w30": 37_712_220,
    "w32": 41_232_680,
    "w40": 57_557_160,
    "w44": 67_064_984,
    "w48": 77_469_864,
    "w64": 128_059_944,
}


@functools.cache
def blank(size: str) -> HighResolutionNet:
    with torch.device("meta"):
        return HighResolutionNet(size)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def tiny(seed: int = 0, **changes) -> HRNet:
    """Statistics as after training, so that normalisation is not the identity; features of about 1."""
    net = backbone(option("backbone", "hrnet"), seed=seed, size="tiny", **changes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(2.0, 6.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    return net.eval()


def head(widths) -> int:
    """The classification head (section 5 of the paper): a bottleneck per branch, from fine to coarse added, 2,048."""
    wide = [4 * inner for inner in (32, 64, 128, 256)]
    total = 0
    for width, out in zip(widths, wide, strict=True):
        inner = out // 4
        total += width * inner + 9 * inner * inner + inner * out + width * out + 2 * (2 * inner + 2 * out)
    total += sum(9 * a * b + 3 * b for a, b in pairwise(wide))
    return total + wide[-1] * 2048 + 3 * 2048 + 2048 * 1000 + 1000


@pytest.mark.parametrize(
    "size", [s if s in ("w18_small", "w18_small_v2", "w18", "w48") else slow(s) for s in CLASSIFIERS]
)
def test_parameters_are_those_of_the_published_classifier_without_its_head(size):
    trunk = blank(size)
    assert sum(p.numel() for p in trunk.parameters()) == CLASSIFIERS[size] - head(PRESETS[size].widths)


def test_parameters_by_a_formula():
    def conv(before, after, kernel=3):
        return kernel * kernel * before * after + 2 * after

    for width, expected in ((18, 9_562_260), (48, 65_325_120)):
        c = [width * 2**i for i in range(4)]
        count = conv(3, 64) + conv(64, 64)
        count += conv(64, 64, 1) + 3 * conv(256, 64, 1) + 4 * (conv(64, 64) + conv(64, 256, 1)) + conv(64, 256, 1)
        count += conv(256, c[0]) + conv(256, c[1]) + conv(c[1], c[2]) + conv(c[2], c[3])
        for branches, modules in ((2, 1), (3, 4), (4, 3)):
            unit = sum(4 * 2 * conv(c[i], c[i]) for i in range(branches))
            for i in range(branches):
                unit += sum(conv(c[j], c[i], 1) for j in range(i + 1, branches))
                unit += sum((i - j - 1) * conv(c[j], c[j]) + conv(c[j], c[i]) for j in range(i))
            count += modules * unit
        assert count == expected == sum(p.numel() for p in blank(f"w{width}").parameters())


@pytest.mark.parametrize(("size", "published"), [("w18", 4.3), ("w48", 17.3)])
def test_multiplications_are_the_published_ones(size, published):
    """Billions at 224 × 224 with the head: that of the trunk counted, that of the head by its formula."""
    counts = []

    def count(module, inputs, made):
        counts.append(made[0].numel() * module.weight[0].numel())

    trunk = blank(size)
    hooks = [m.register_forward_hook(count) for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    trunk(torch.empty(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    multiplications = sum(counts)
    wide = [4 * inner for inner in (32, 64, 128, 256)]
    cells = [(224 // stride) ** 2 for stride in (4, 8, 16, 32)]
    for width, out, n in zip(PRESETS[size].widths, wide, cells, strict=True):
        inner = out // 4
        multiplications += n * (width * inner + 9 * inner * inner + inner * out + width * out)
    multiplications += sum(9 * wide[i] * wide[i + 1] * cells[i + 1] for i in range(3)) + cells[3] * wide[3] * 2048
    assert multiplications / 1e9 == pytest.approx(published, abs=0.051)


@pytest.mark.parametrize(
    ("size", "count", "digest"),
    [
        ("w18_small", 426, "b46b9331d5b04501"),
        ("w18", 1830, "088eac1b39464671"),
        ("w48", 1830, "62379f6f5dd9850f"),
    ],
)
def test_names_and_shapes_are_those_of_the_checkpoints_on_the_hub(size, count, digest):
    """Of timm 1.0.31's networks, less the head."""
    lines = [f"{name} {list(tensor.shape)}" for name, tensor in sorted(blank(size).state_dict().items())]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


class Written:
    """The network written out with functions and the checkpoint's names, without its modules."""

    def __init__(self, state: dict[str, torch.Tensor], upsampling: str) -> None:
        self.state, self.upsampling = state, upsampling

    def conv(self, x, conv, norm, stride=1, relu=True):
        weight = self.state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            self.state[f"{norm}.{n}"].view(1, -1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return x.clamp(min=0) if relu else x

    def basic(self, x, name):
        y = self.conv(x, f"{name}.conv1", f"{name}.bn1")
        return (self.conv(y, f"{name}.conv2", f"{name}.bn2", relu=False) + x).clamp(min=0)

    def bottleneck(self, x, name):
        y = self.conv(x, f"{name}.conv1", f"{name}.bn1")
        y = self.conv(y, f"{name}.conv2", f"{name}.bn2")
        y = self.conv(y, f"{name}.conv3", f"{name}.bn3", relu=False)
        if f"{name}.downsample.0.weight" in self.state:
            x = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", relu=False)
        return (y + x).clamp(min=0)

    def finer(self, x, factor):
        if self.upsampling == "nearest":
            return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return F.interpolate(x, size=[factor * side for side in x.shape[2:]], mode="bilinear", align_corners=False)

    def exchange(self, maps, name, blocks):
        maps = list(maps)
        for b in range(len(maps)):
            for k in range(blocks):
                maps[b] = self.basic(maps[b], f"{name}.branches.{b}.{k}")
        sums = []
        for i in range(len(maps)):
            total = torch.zeros_like(maps[i])
            for j, x in enumerate(maps):
                f = f"{name}.fuse_layers.{i}.{j}"
                if j > i:
                    x = self.finer(self.conv(x, f"{f}.0", f"{f}.1", relu=False), 2 ** (j - i))
                for k in range(i - j):
                    x = self.conv(x, f"{f}.{k}.0", f"{f}.{k}.1", stride=2, relu=k < i - j - 1)
                total = total + x
            sums.append(total.clamp(min=0))
        return sums

    def __call__(self, x, shape):
        x = self.conv(x, "conv1", "bn1", stride=2)
        x = self.conv(x, "conv2", "bn2", stride=2)
        for k in range(shape.first[0]):
            x = self.bottleneck(x, f"layer1.{k}")
        maps = [
            self.conv(x, "transition1.0.0", "transition1.0.1"),
            self.conv(x, "transition1.1.0.0", "transition1.1.0.1", stride=2),
        ]
        for stage, modules in zip((2, 3, 4), shape.modules, strict=True):
            if stage > 2:
                t = f"transition{stage - 1}.{stage - 1}.0"
                maps = [*maps, self.conv(maps[-1], f"{t}.0", f"{t}.1", stride=2)]
            for m in range(modules):
                maps = self.exchange(maps, f"stage{stage}.{m}", shape.blocks)
        return maps


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_the_forward_pass_written_out(upsampling):
    net = tiny(upsampling=upsampling, mean=[0.0] * 3, std=[1.0] * 3)
    pixels = example("image", batch=1, size=(64, 96))["pixels"]
    with torch.no_grad():
        features = net({"pixels": pixels})
        expected = Written(net.trunk.state_dict(), upsampling)(pixels, net.trunk.shape)
    assert [tuple(x.shape[1:]) for x in expected] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    for ours, theirs in zip(features.pyramid, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    means = torch.cat([x.flatten(2).mean(2) for x in expected], dim=1)
    torch.testing.assert_close(features.pooled, means, atol=1e-5, rtol=1e-4)


def test_every_branch_reads_every_other():
    unit = Exchange([4, 8, 16], 1, "nearest").eval()
    for source in range(3):
        maps = [torch.randn(1, 4 * 2**i, 8 // 2**i, 8 // 2**i, requires_grad=i == source) for i in range(3)]
        for made in unit(maps):
            (grad,) = torch.autograd.grad(made.sum(), maps[source], retain_graph=True)
            assert grad.abs().sum() > 0


def test_branches_side_by_side_and_apart_again():
    maps = [torch.randn(2, 3 * 2**i, 16 // 2**i, 8 // 2**i) for i in range(4)]
    joined = side_by_side(maps, range(4), 0)
    assert joined.shape == (2, 45, 16, 8)
    assert torch.equal(joined[:, 9:21, 5, 6], maps[2][:, :, 1, 1])
    for x, again in zip(maps, apart(joined, [3, 6, 12, 24], range(4)), strict=True):
        torch.testing.assert_close(x, again)
    some = side_by_side(maps[1:], [1, 2, 3], 2)
    assert some.shape == (2, 42, 4, 2)
    torch.testing.assert_close(some[:, :6], F.avg_pool2d(maps[1], 2))


def test_levels_that_nobody_reads_lose_their_last_sums_and_nothing_else():
    net, whole = tiny(), tiny()
    before = set(net.state_dict())
    net.restrict(["dense"])
    net.keep_levels([1, 3])
    gone = before - set(net.state_dict())
    assert gone and all(
        name.startswith(("trunk.stage4.1.fuse_layers.0.", "trunk.stage4.1.fuse_layers.2.")) for name in gone
    )
    assert set(net.state_dict()) < before
    assert net.spec.channels == (16, 64) and net.spec.strides == (8, 32)
    for ours, theirs in zip(net(example("image")).pyramid, whole(example("image")).pyramid[1::2], strict=True):
        assert torch.equal(ours, theirs)
    both = tiny()
    both.keep_levels([0])  # pooled tasks still read all of them
    assert set(both.state_dict()) == before


def write(folder, state, architecture="hrnet_w18_small", name="model.safetensors"):
    save_file(state, folder / name, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 1000}))
    return str(folder)


@pytest.fixture
def published(tmp_path):
    """A checkpoint as on the hub: half of it is the classification head."""
    torch.manual_seed(3)
    state = {name: t.clone() for name, t in HighResolutionNet("w18_small").state_dict().items()}
    extra = {
        "incre_modules.0.0.conv1.weight": torch.ones(32, 16, 1, 1),
        "downsamp_modules.0.0.bias": torch.ones(256),
        "final_layer.1.running_mean": torch.ones(2048),
        "classifier.weight": torch.ones(10, 2048),
    }
    write(tmp_path, state | extra)
    return tmp_path, state


def small(pretrained, **changes) -> HRNet:
    return HRNet(IMAGE, **{"size": "w18_small", "pretrained": str(pretrained), **changes})


def refuse(pretrained, *words, **changes) -> None:
    with pytest.raises(UserError) as caught:
        small(pretrained, **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_checkpoint_is_read_without_its_head(published, caplog):
    folder, state = published
    with caplog.at_level(logging.INFO, "runner"):
        net = small(folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.trunk.state_dict().items())
    assert "426 tensors" in caplog.text and "left out: classifier.weight, downsamp_modules.0.0.bias" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert small(folder, size=None).spec == net.spec
    write(folder, load_file(folder / "model.safetensors") | {"attention.weight": torch.ones(2)})
    with caplog.at_level(logging.INFO, "runner"):
        small(folder)
    assert "no place for: attention.weight" in caplog.text


def test_other_forms_of_a_checkpoint(published):
    folder, state = published
    old = {k: t.bfloat16() if t.is_floating_point() else t for k, t in state.items() if "num_batches" not in k}
    write(folder, old, "hrnet_w18_small_ssld")  # half precision, no counters, distilled
    net = small(folder)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(net.trunk.conv1.weight, state["conv1.weight"].bfloat16().float())
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-1.safetensors": names[:200], "model-2.safetensors": names[200:]}
    for shard, part in shards.items():
        write(folder, {name: state[name] for name in part}, name=shard)
    where = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(
        small(folder).trunk.stage2[0].branches[1][0].conv2.weight, state["stage2.0.branches.1.0.conv2.weight"]
    )


def test_checkpoints_that_do_not_fit(published, tmp_path):
    folder, state = published
    refuse(folder, "not of backbone.size=w48", "it is of 'hrnet_w18_small'", "set backbone.size=w18_small", size="w48")
    write(folder, {k: t for k, t in state.items() if not k.startswith("stage4.")})
    refuse(folder, "lacks", "of the trunk's tensors: stage4.0.branches.0.0.bn1.bias", "incomplete")
    write(folder, state | {"conv1.weight": torch.ones(64, 1, 3, 3)})
    refuse(folder, "1 tensors have another shape", "conv1.weight: (64, 1, 3, 3) instead of (64, 3, 3, 3)")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(folder, "cannot be loaded")
    write(folder, state, "resnet50")
    refuse(folder, "is a checkpoint of 'resnet50', this backbone is 'hrnet'", "runner ls backbone")
    write(folder, state, "hrnet_w99")
    refuse(folder, "'hrnet_w99', which is no size of this backbone", size=None)
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    refuse(folder, "is a checkpoint of 'resnet'", "timm")
    (folder / "config.json").write_text("{")
    refuse(folder, "config.json cannot be read")
    refuse(tmp_path / "nowhere", "there is no such directory")
    with pytest.raises(UserError, match="size=null takes the size of a checkpoint"):
        HRNet(IMAGE, size=None)


def test_norms(published):
    folder, _ = published
    net = small(folder, norm="frozen").train()
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    grouped = backbone(option("backbone", "hrnet"), size="tiny", norm="group")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in grouped.modules())
    refuse(folder, "norm=group replaces BatchNorm", norm="group")
    with pytest.raises(UserError, match="pretrained is null"):
        HRNet(IMAGE, size="tiny", norm="frozen")


def test_channels_last_stays_so():
    net = tiny().to(memory_format=torch.channels_last)
    pixels = example("image")["pixels"].to(memory_format=torch.channels_last)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in net({"pixels": pixels}).pyramid)
