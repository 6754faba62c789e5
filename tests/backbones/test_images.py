"""What image backbones do to images before the trunk, and to its maps after it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from runner.backbones.convnext import ConvNext
from runner.backbones.dinov2 import DINOv2
from runner.backbones.plain import bicubic_matrix
from runner.backbones.resnet import ResNet
from runner.backbones.segformer import Segformer
from runner.backbones.swin import Swin
from runner.backbones.vit import ViT
from runner.errors import UserError
from tests.backbones.samples import SPECS, example

IMAGE = SPECS["image"]


def test_normalisation_is_part_of_the_backbone():
    torch.manual_seed(0)
    net = ResNet(IMAGE, size="tiny", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).eval()
    pixels = example("image")["pixels"]
    normal = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(net({"pixels": pixels}).pooled, net.trunk(normal).pooler_output.flatten(1))
    assert not {"mean", "std"} & net.state_dict().keys()


@pytest.mark.parametrize("bad", [{"mean": [0.5]}, {"std": [1.0, 1.0, 0.0]}, {"std": [1.0, 1.0]}], ids=str)
def test_wrong_statistics(bad):
    with pytest.raises(UserError, match="three numbers"):
        ResNet(IMAGE, size="tiny", **bad)


def test_drop_path_below_one():
    with pytest.raises(UserError, match="below 1"):
        Swin(IMAGE, size="tiny", drop_path=1.0)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Swin, "SwinDropPath"),
        (Segformer, "SegformerDropPath"),
        (DINOv2, "Dinov2DropPath"),
        (ConvNext, "ConvNextDropPath"),
    ],
)
def test_drop_path_reaches_the_blocks(make, kind):
    def rates(value):
        modules = make(IMAGE, size="tiny", drop_path=value).modules()
        return {m.drop_prob for m in modules if type(m).__name__ == kind and m.drop_prob}

    assert rates(0.0) == set()
    assert math.isclose(max(rates(0.4)), 0.4, rel_tol=1e-6)


def test_stochastic_depth_of_a_vit_leaves_out_branches_of_examples():
    torch.manual_seed(0)
    net, plain = ViT(IMAGE, size="tiny", drop_path=0.6), ViT(IMAGE, size="tiny")
    plain.load_state_dict(net.state_dict())
    pixels = example("image", size=(32, 32))["pixels"]
    for module in (net, plain):
        module.eval()
    torch.testing.assert_close(net({"pixels": pixels}).pooled, plain({"pixels": pixels}).pooled)

    block = net.blocks()[-1].train()
    change_BD = block.dropout(torch.ones(4000, 1, 64))[:, 0]
    assert (change_BD == change_BD[:, :1]).all()  # all of an example or nothing
    assert change_BD.unique().tolist() == pytest.approx([0.0, 2.5])
    assert abs(change_BD.mean() - 1.0) < 0.06  # unbiased
    assert [b.dropout[1].rate for b in net.blocks()] == pytest.approx([0.0, 0.2, 0.4, 0.6])


@pytest.mark.parametrize("make", [ConvNext, ViT, Segformer], ids=lambda c: c.__name__)
def test_padding_is_at_the_bottom_and_right_and_cut_off(make):
    """An image whose sides do not divide gives the top left corner of the same image padded with the mean colour."""
    torch.manual_seed(0)
    net = make(IMAGE, size="tiny", mean=[0.5, 0.5, 0.5]).eval()
    pixels = example("image", size=(50, 90))["pixels"]
    padded = F.pad(pixels, (0, 6, 0, 14), value=0.5)
    odd, even = net({"pixels": pixels}).pyramid, net({"pixels": padded}).pyramid
    for left, right in zip(odd, even, strict=True):
        torch.testing.assert_close(left, right[..., : left.shape[-2], : left.shape[-1]], atol=1e-5, rtol=1e-5)


def test_swin_does_not_remember_earlier_image_sizes():
    torch.manual_seed(0)
    net = Swin(IMAGE, size="tiny", window=4).eval()
    large = example("image", size=(128, 128))
    before = net(large).pyramid
    net(example("image", size=(32, 32)))
    for left, right in zip(before, net(large).pyramid, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("make", [ViT, DINOv2], ids=lambda c: c.__name__)
@pytest.mark.parametrize("grid", [(14, 14), (28, 20), (5, 9)], ids=str)
def test_positions_are_interpolated_as_transformers_does(make, grid):
    torch.manual_seed(0)
    net = make(IMAGE, size="tiny")
    embeddings, patch = net.trunk.embeddings, net.trunk.config.patch_size
    tokens = torch.zeros(1, 1 + grid[0] * grid[1], net.spec.dim)
    height, width = (patch * side for side in grid)
    theirs = type(embeddings).interpolate_pos_encoding(embeddings, tokens, height, width)
    ours = embeddings.interpolate_pos_encoding(tokens, height, width)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(theirs)
    [expected] = torch.autograd.grad((theirs * weight).sum(), embeddings.position_embeddings)
    [got] = torch.autograd.grad((ours * weight).sum(), embeddings.position_embeddings)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_bicubic_weights_sum_to_one():
    torch.testing.assert_close(bicubic_matrix(14, 37, torch.zeros(1)).sum(1), torch.ones(37))


def test_taps_are_evenly_spaced_and_last_takes_the_last():
    assert ViT(IMAGE, size="tiny").taps == [1, 2, 3, 4]
    with torch.device("meta"):
        assert ViT(IMAGE, size="large").taps == [6, 12, 18, 24]
        assert ViT(IMAGE, size="base").taps == [3, 6, 9, 12]
    assert ViT(IMAGE, size="tiny", pyramid="last").taps == [4] * 4


def test_the_map_at_the_patch_stride_holds_the_normalised_tokens_in_place():
    torch.manual_seed(0)
    net = ViT(IMAGE, size="tiny", pyramid="last", mean=[0.0] * 3, std=[1.0] * 3).eval()
    pixels = example("image", size=(64, 96))["pixels"]
    tokens = net.trunk(pixels, interpolate_pos_encoding=True).last_hidden_state
    level = net({"pixels": pixels}).pyramid[2]
    for row in range(4):
        for column in range(6):
            torch.testing.assert_close(level[..., row, column], tokens[:, 1 + 6 * row + column])


def test_mean_pooling_leaves_out_the_class_token():
    torch.manual_seed(0)
    net = ViT(IMAGE, size="tiny", pooling="mean").eval()
    net.restrict(["pooled"])
    inputs = example("image")
    normal = (inputs["pixels"] - net.mean) / net.std
    tokens = net.trunk(normal, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(net(inputs).pooled, tokens[:, 1:].mean(1))


def test_eager_attention_allows_second_derivatives():
    torch.manual_seed(0)
    net = ViT(IMAGE, size="tiny", attention="eager")
    loss = net(example("image")).pooled.square().mean()
    weight = net.trunk.embeddings.cls_token
    [first] = torch.autograd.grad(loss, weight, create_graph=True)
    [second] = torch.autograd.grad(first.square().sum(), weight)
    assert second.isfinite().all() and second.abs().max() > 0


def test_convolutional_stem_halves_down_to_the_patch_and_serves_images_of_any_size():
    torch.manual_seed(0)
    net = ViT(IMAGE, size="mini", stem="conv", pooling="mean").eval()
    stem = net.trunk.embeddings.patch_embeddings.projection
    assert [tuple(c.weight.shape[:2]) for c in stem.convolutions] == [(32, 3), (64, 32), (128, 64)]
    assert stem(torch.rand(2, 3, 32, 48)).shape == (2, 128, 4, 6)
    features = net(example("image", size=(50, 90)))
    assert features.pooled.shape[1] == 128 and [m.shape[-1] for m in features.pyramid] == [45, 23, 12, 6]
    with pytest.raises(UserError, match=r"backbone\.stem=conv replaces the patches"):
        ViT(IMAGE, size="mini", stem="conv", pretrained="nobody/nothing")
