"""timm's ViT checkpoints against timm's computation, written out from its definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.backbones.vit import ViT
from runner.errors import UserError
from runner.specs import InputSpec

WIDTH, DEPTH, PATCH, SIDE, HEADS = 48, 2, 16, 48, 3
IMAGES = InputSpec("image", size=(SIDE, SIDE))


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """A vit_tiny of 48 channels and two blocks, by timm's names; no two tensors alike."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.3

    made = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH) * 0.2,
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": 1 + draw(WIDTH),
        "norm.bias": draw(WIDTH),
        "head.weight": draw(10, WIDTH),
        "head.bias": draw(10),
    }
    for i in range(DEPTH):
        made |= {
            f"blocks.{i}.{part}.{kind}": draw(*shape) + (1 if "norm" in part and kind == "weight" else 0)
            for part, rows, columns in (
                ("norm1", 0, WIDTH),
                ("attn.qkv", 3 * WIDTH, WIDTH),
                ("attn.proj", WIDTH, WIDTH),
                ("norm2", 0, WIDTH),
                ("mlp.fc1", 4 * WIDTH, WIDTH),
                ("mlp.fc2", WIDTH, 4 * WIDTH),
            )
            for kind, shape in (("weight", (rows, columns) if rows else (columns,)), ("bias", (rows or columns,)))
        }
    return made


def write(folder: Path, state: dict[str, Tensor], **about: object) -> str:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_48", "num_classes": 10, "pretrained_cfg": {}} | about
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def timm_tokens(t: dict[str, Tensor], x_BCHW: Tensor) -> Tensor:
    """What timm's VisionTransformer.forward_features computes."""
    x = F.conv2d(x_BCHW, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([t["cls_token"].expand(len(x), -1, -1), x], 1) + t["pos_embed"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    for i in range(DEPTH):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x))
        q, k, v = qkv.reshape(len(x), -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).reshape(x.shape))
        x = x + linear(f"blocks.{i}.mlp.fc2", F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))))
    return norm("norm", x)


def vit(pretrained: str, size: str | None = None, **keys: object) -> ViT:
    return ViT(IMAGES, size=size, pretrained=pretrained, **keys)


def test_it_computes_what_timm_computes(tmp_path, caplog):
    state = tensors()
    backbone = vit(write(tmp_path / "timm", state)).eval()
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, _ = backbone.encode(pixels, False)
    torch.testing.assert_close(found, timm_tokens(state, pixels), rtol=1e-4, atol=1e-4)
    assert backbone.trunk.config.num_attention_heads == HEADS and backbone.trunk.config.image_size == SIDE
    assert not [r for r in caplog.records if r.levelname == "WARNING"]  # the classifier is no surprise


def test_what_it_writes_transformers_reads(tmp_path):
    first = vit(write(tmp_path / "timm", tensors())).eval()
    first.trunk.save_pretrained(tmp_path / "hf")
    second = vit(str(tmp_path / "hf")).eval()
    pixels = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(first.encode(pixels, False)[0], second.encode(pixels, False)[0], rtol=0, atol=0)


def lacking(name: str) -> dict[str, Tensor]:
    return {k: t for k, t in tensors().items() if k != name}


@pytest.mark.parametrize(
    ("state", "about", "words"),
    [
        (tensors(), {"architecture": "swin_tiny_patch4_window7_224"}, "is a checkpoint of 'swin_tiny"),
        (tensors(), {"architecture": "deit_tiny_distilled_patch16_224"}, "is a checkpoint of 'deit_tiny_distilled"),
        (tensors() | {"norm_pre.weight": torch.ones(WIDTH)}, {}, "computes otherwise .* norm_pre.weight"),
        (tensors() | {"blocks.0.ls1.gamma": torch.ones(WIDTH)}, {}, r"computes otherwise .* blocks\.0\.ls1\.gamma"),
        (lacking("blocks.1.mlp.fc2.bias"), {}, "lacks 1 of the trunk's tensors: layers.1.mlp.fc2.bias"),
        (lacking("pos_embed"), {}, "lacks tensors of a ViT"),
        (tensors() | {"pos_embed": torch.ones(1, 9, WIDTH)}, {}, "has 8 positions"),
        (tensors() | {"norm.bias": torch.ones(3)}, {}, "another shape"),
    ],
)
def test_other_networks_are_refused(tmp_path, state, about, words):
    with pytest.raises(UserError, match=words):
        vit(write(tmp_path / "other", state, **about))


def test_the_size_is_a_claim_that_is_checked(tmp_path):
    with pytest.raises(UserError, match=r"is not of backbone.size=base: hidden_size is 48, not 768"):
        vit(write(tmp_path / "timm", tensors()), size="base")
    assert vit(write(tmp_path / "timm", tensors()), dropout=0.2).trunk.config.hidden_dropout_prob == 0.2
