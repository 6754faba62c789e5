"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from runner.backbones.hub import local_config
from runner.backbones.plain import PlainTransformer
from runner.backbones.pretrained import attention_choice, checked_drop_path, make_trunk
from runner.backbones.resnet import group_norm
from runner.backbones.timm_checkpoints import is_timm
from runner.backbones.timm_vit import make_timm_trunk
from runner.config.kinds import Fraction, NonNegativeInt
from runner.errors import UserError
from runner.specs import InputSpec


def _preset(width: int, layers: int, heads: int, patch: int = 16) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
    }


# "mini" is for images of 32 pixels. "vit_tiny" and "small" are those of DeiT, Touvron et al. 2021, arXiv 2012.12877.
PRESETS = {
    "tiny": _preset(64, 4, 2),
    "mini": _preset(128, 4, 4, patch=8) | {"image_size": 32},
    "vit_tiny": _preset(192, 12, 3),
    "small": _preset(384, 12, 6),
    "base": _preset(768, 12, 12),
    "large": _preset(1024, 24, 16),
}


class ViT(PlainTransformer):
    """Plain transformer on patches; position embeddings are interpolated to any image size.

    Layer groups: embeddings, then one per block.

    Args:
        drop_path: chance of leaving a residual branch of the last block out for an example; it rises from 0 in the
            first one, evenly (Huang et al. 2016, arXiv 1603.09382).
        stem: "patch" cuts the image into patches; "conv" replaces that by 3×3 convolutions of stride 2 with GroupNorm
            and one 1×1 convolution (Xiao et al. 2021, arXiv 2106.14881), from scratch only.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "mini", "vit_tiny", "small", "base", "large"] | None = "base",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        stem: Literal["patch", "conv"] = "patch",
        pyramid: Literal["taps", "last"] = "taps",
        pooling: Literal["first", "mean"] = "first",
        dropout: Fraction | None = None,
        drop_path: Fraction | None = None,
        attention: Literal["auto", "eager", "sdpa"] = "auto",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        if stem == "conv" and pretrained is not None:
            raise UserError(
                "backbone.stem=conv replaces the patches that a checkpoint's weights were trained with",
                "set backbone.stem=patch, or backbone.pretrained=null",
            )
        trunk = _make_trunk(size, pretrained, dropout, attention_choice(attention))
        patch = trunk.config.patch_size
        if not isinstance(patch, int) or patch % 4:
            raise UserError(f"backbone.pretrained={pretrained} has patches of {patch}; multiples of 4 give a pyramid")
        if stem == "conv":
            trunk.embeddings.patch_embeddings.projection = ConvStem(trunk.config.hidden_size, patch)
        super().__init__(inputs, trunk, patch, pyramid, pooling, mean, std)
        if rate := checked_drop_path(drop_path):
            last = max(1, len(self.blocks()) - 1)
            for index, block in enumerate(self.blocks()):  # the module through which both branches of a block go
                block.dropout = nn.Sequential(block.dropout, StochasticDepth(rate * index / last))
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.layers)

    def trunk_groups(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[self.trunk.embeddings], *([block] for block in self.blocks())]
        groups[-1].append(self.trunk.layernorm)
        return groups

    def embed(self, x_BCHW: Tensor) -> Tensor:
        return self.trunk.embeddings(x_BCHW, interpolate_pos_encoding=True)

    def encode(self, x_BCHW: Tensor, all_blocks: bool) -> tuple[Tensor, Sequence[Tensor]]:
        output = self.trunk(x_BCHW, interpolate_pos_encoding=True, output_hidden_states=all_blocks)
        return output.last_hidden_state, output.hidden_states or ()


def _make_trunk(
    size: str | None, pretrained: str | None, dropout: float | None, attention: str | None
) -> PreTrainedModel:
    settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if pretrained is not None and is_timm(directory := local_config(pretrained), pretrained):
        arguments = {"add_pooling_layer": False} | ({"attn_implementation": attention} if attention else {})
        return make_timm_trunk(directory, pretrained, PRESETS, size, settings, arguments)
    return make_trunk(
        "vit",
        PRESETS,
        size,
        pretrained,
        settings=settings | {"attn_implementation": attention},
        ignore=[r"^classifier\.", r"^decoder\.", r"pooler\.", r"mask_token$"],
        add_pooling_layer=False,
    )


class StochasticDepth(nn.Module):
    """Leaves whole residual branches out for single examples while training; those that stay are scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)


class ConvStem(nn.Module):
    """Images (B, 3, H, W) → (B, D, H / patch, W / patch): halving 3×3 convolutions, then a 1×1 (Xiao et al. 2021).

    Args:
        dim: D; the convolutions before the last have a half, a quarter, … of it.
        patch: a power of two.
    """

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        widths = [3, *(dim >> (halvings - 1 - index) for index in range(halvings))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False) for i in range(halvings)
        )
        self.norms = nn.ModuleList(group_norm(width) for width in widths[1:])
        self.out = nn.Conv2d(dim, dim, 1)

    @property
    def weight(self) -> Tensor:
        """What transformers asks for the dtype of."""
        return self.out.weight

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BCHW = F.relu(norm(convolution(x_BCHW)))
        return self.out(x_BCHW)
