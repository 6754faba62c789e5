"""Plain vision transformers from timm's checkpoints, such as `timm/vit_large_patch16_384.augreg_in21k_ft_in1k`.

The tensors get the names that transformers has for them; timm is not needed. Queries, keys and values, one matrix
there, become three.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel, PreTrainedModel, ViTConfig

from runner.backbones.hub import local_checkpoint
from runner.backbones.pretrained import Presets, check_size
from runner.backbones.timm_checkpoints import fill, match_architecture, read_about, read_renamed
from runner.errors import UserError

ARCHITECTURE = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+")
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
HEAD = [r"^head\.", r"^pre_logits\."]
"""The classifier, which is left out."""
EPS = 1e-6
"""Of the norms; the configuration of transformers has another default."""

NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
INSIDE = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Of a block; `attn.qkv` is three."""


def make_timm_trunk(
    directory: Path,
    pretrained: str,
    presets: Presets,
    size: str | None,
    settings: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> PreTrainedModel:
    """A ViTModel with the weights of a checkpoint of timm's.

    Args:
        directory: with its config.json.
        pretrained: what the configuration calls it, for messages.
        presets, size: what the configuration says of it, see `runner.backbones.pretrained.make_trunk`.
        settings: further values of the configuration (dropout).
        arguments: for the model's constructor.

    Raises:
        UserError: it is another kind of network, or does not hold what it should.
    """
    named = match_architecture(directory, pretrained, ARCHITECTURE, "a plain ViT (vit_base_patch16_384, …)")
    state = read_renamed(local_checkpoint(pretrained), pretrained, renamed, HEAD, "a plain ViT")
    given = read_about(directory).get("model_args") or {}
    heads = given.get("num_heads") or HEADS[named[1]]
    config = _config(state, int(heads), pretrained)
    check_size(config, presets, size, pretrained)
    config.update({key: value for key, value in settings.items() if value is not None})
    trunk = AutoModel.from_config(config, **arguments)
    fill(trunk, state, pretrained, HEAD)
    return trunk


def renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor by the names of transformers; nothing for one that a plain ViT does not have."""
    part, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", part)
    if name in NAMES:
        return {NAMES[name]: tensor}
    if part in NAMES:
        return {f"{NAMES[part]}.{kind}": tensor}
    if block and block[2] == "attn.qkv":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"layers.{block[1]}.attention.{letter}_proj.{kind}": third for letter, third in thirds}
    if block and block[2] in INSIDE:
        return {f"layers.{block[1]}.{INSIDE[block[2]]}.{kind}": tensor}
    return {}


def _config(state: Mapping[str, Tensor], heads: int, pretrained: str) -> ViTConfig:
    """The configuration that fits the tensors."""
    try:
        patches = state["embeddings.patch_embeddings.projection.weight"]
        places = state["embeddings.position_embeddings"].shape[1] - 1  # less the class token
        hidden = state["layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise UserError(f"backbone.pretrained={pretrained} lacks tensors of a ViT: {error}") from error
    side = round(places**0.5)
    if side * side != places:
        raise UserError(f"backbone.pretrained={pretrained} has {places} positions: that is no square of patches")
    return ViTConfig(
        hidden_size=patches.shape[0],
        num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=patches.shape[-1],
        image_size=side * patches.shape[-1],
        layer_norm_eps=EPS,
        qkv_bias="layers.0.attention.q_proj.bias" in state,
    )
