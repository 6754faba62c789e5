"""The image encoder of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from runner.backbones.hub import local_checkpoint, local_config
from runner.backbones.plain import PlainTransformer, bicubic_matrix
from runner.backbones.pretrained import attention_choice, check_size, load_weights
from runner.config.kinds import NonNegativeInt
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _preset(width: int, layers: int, heads: int, patch: int, projection: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "projection_dim": projection,
    }


PRESETS = {
    "tiny": _preset(64, 4, 2, 16, 32),
    "b32": _preset(768, 12, 12, 32, 512),
    "b16": _preset(768, 12, 12, 16, 512),
    "l14": _preset(1024, 24, 16, 14, 768),
}


class CLIP(PlainTransformer):
    """Plain transformer on patches whose [CLS] token is projected into the space that texts share: the pooled vector.

    Reads whole CLIP checkpoints, of which the text tower is left out, and those of the image encoder alone.
    Layer groups: embeddings, then one per block, the projection with the last.
    """

    input_kind = "image"
    serves = ("pooled",)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "b32", "b16", "l14"] | None = "b32",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        attention: Literal["auto", "eager", "sdpa"] = "auto",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        model = make_clip(size, pretrained, attention_choice(attention))
        tower: Any = model.vision_model
        super().__init__(inputs, tower, tower.config.patch_size, "last", "first", mean, std)
        self.trunk = model  # with the projection
        self.multiple = self.patch
        self.spec = replace(self.spec, channels=(), strides=(), dim=tower.config.projection_dim)
        self.stage_spec = FeatureSpec((), (), tower.config.hidden_size)
        self.neck = None
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.vision_model.encoder.layers)

    def trunk_groups(self) -> list[list[nn.Module]]:
        first: list[nn.Module] = [self.trunk.vision_model.embeddings, self.trunk.vision_model.pre_layrnorm]
        groups = [first, *([block] for block in self.blocks())]
        groups[-1] += [self.trunk.vision_model.post_layernorm, self.trunk.visual_projection]
        return groups

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return (self.stage_spec.dim,) * len(self.stage_ends)

    def norm(self, tokens_BTD: Tensor) -> Tensor:
        return self.trunk.vision_model.post_layernorm(tokens_BTD)

    def embed(self, x_BCHW: Tensor) -> Tensor:
        embeddings = self.trunk.vision_model.embeddings
        patches_BHWD = embeddings.patch_embedding(x_BCHW).movedim(1, -1)
        table_TD = embeddings.position_embedding.weight
        side = round((len(table_TD) - 1) ** 0.5)
        grid_HWD = table_TD[1:].unflatten(0, (side, side))
        if patches_BHWD.shape[1:3] != (side, side):
            with torch.autocast(table_TD.device.type, enabled=False):
                rows, columns = (bicubic_matrix(side, new, table_TD) for new in patches_BHWD.shape[1:3])
                grid_HWD = torch.einsum("ih,hwd,jw->ijd", rows, grid_HWD, columns)
        first_B1D = (embeddings.class_embedding + table_TD[0]).expand(len(x_BCHW), 1, -1)
        tokens_BTD = torch.cat([first_B1D, (patches_BHWD + grid_HWD).flatten(1, 2)], 1)
        return self.trunk.vision_model.pre_layrnorm(tokens_BTD)

    def encode(self, x_BCHW: Tensor, all_blocks: bool) -> tuple[Tensor, Sequence[Tensor]]:
        last_BTD = self.trunk.vision_model.encoder(inputs_embeds=self.embed(x_BCHW)).last_hidden_state
        return self.norm(last_BTD), ()

    def run_block(self, block: Any, tokens_BTD: Tensor) -> Tensor:
        return block(tokens_BTD, None)  # no mask

    def pool(self, levels: list[Tensor]) -> Tensor:
        return self.trunk.visual_projection(levels[0][:, 0])


def make_clip(size: str | None, pretrained: str | None, attention: str | None) -> CLIPVisionModelWithProjection:
    """The image encoder with its projection, from scratch or from a checkpoint."""
    arguments = {"attn_implementation": attention} if attention else {}
    if pretrained is None:
        if size is None:
            raise UserError("backbone.size=null takes the size of a checkpoint, and backbone.pretrained is null")
        config = CLIPVisionConfig(image_size=224, **PRESETS[size])
        return CLIPVisionModelWithProjection._from_config(config, **arguments)
    check_size(read_vision_config(local_config(pretrained), pretrained), PRESETS, size, pretrained)
    directory = local_checkpoint(pretrained)
    config = read_vision_config(directory, pretrained)
    ignore = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"position_ids$"]
    return load_weights(CLIPVisionModelWithProjection, directory, pretrained, config, ignore, arguments)


def read_vision_config(directory: Path, pretrained: str) -> CLIPVisionConfig:
    """The image encoder's part of a checkpoint's configuration.

    Raises:
        UserError: it is not CLIP's.
    """
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"backbone.pretrained={pretrained}: config.json cannot be read: {error}") from error
    kind = found.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise UserError(
            f"backbone.pretrained={pretrained} is a checkpoint of '{kind}', this backbone is 'clip'",
            "choose the backbone of that family, or a checkpoint of this one",
            "runner ls backbone",
        )
    own = found.get("vision_config") or {} if kind == "clip" else found
    projection = found.get("projection_dim", own.get("projection_dim", 512))
    known = {k: v for k, v in own.items() if k not in ("model_type", "transformers_version", "architectures", "dtype")}
    return CLIPVisionConfig(**{**known, "projection_dim": projection})
