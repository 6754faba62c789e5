"""Zero-shot classification by the texts of CLIP (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.architectures.heads.base import Head
from runner.config.kinds import PositiveFloat
from runner.errors import UserError, first_line
from runner.specs import FeatureSpec
from runner.types import Features

BATCH = 256
"""Texts that are encoded at a time."""


class ZeroShot(Head):
    """pooled (B, D) → (B, C): scale · cos(z, text embedding of the class); nothing to train.

    A class's embedding is the normalised mean of the normalised embeddings of its templates. They are computed when the
    head is built and are part of its saved state, so that every expert and every merge has the same head.

    Args:
        spec, out_channels: see `Head`.
        checkpoint: of the whole CLIP model, with its tokenizer: a local directory or a hub id; None draws random
            embeddings, for dry runs without weights.
        classes: a name per class, in the order of the labels.
        templates: sentences with {} for the name.
        scale: None takes the checkpoint's learned one (100).
    """

    kind = "pooled"
    weight_CD: Tensor

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        *,
        checkpoint: str | None,
        classes: list[str],
        templates: list[str],
        scale: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        if len(classes) != out_channels:
            raise UserError(
                f"a zero-shot head needs the names of {out_channels} classes, not {len(classes)}",
                "give them in the order of the labels: mixture.tasks.<task>.head.classes",
            )
        if not templates or not all("{}" in t for t in templates):
            raise UserError("a zero-shot head needs templates with {} for the class", "such as ['a photo of a {}.']")
        if checkpoint is None:
            weight_CD, learned = F.normalize(torch.randn(out_channels, spec.dim), dim=1), 100.0
        else:
            weight_CD, learned = text_embeddings(checkpoint, tuple(classes), tuple(templates))
        if weight_CD.shape[1] != spec.dim:
            raise UserError(
                f"the texts of '{checkpoint}' have {weight_CD.shape[1]} dimensions, the backbone's features {spec.dim}",
                "take the checkpoint that the backbone comes from, and backbone=clip",
            )
        self.register_buffer("weight_CD", weight_CD.clone())
        self.register_buffer("scale", torch.tensor(learned if scale is None else scale))

    def forward(self, features: Features) -> Tensor:
        assert features.pooled is not None
        return self.scale * F.normalize(features.pooled, dim=-1) @ self.weight_CD.T


@lru_cache(maxsize=64)
def text_embeddings(checkpoint: str, classes: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, float]:
    """Class embeddings (C, D), and the factor of the cosine.

    Raises:
        UserError: there is no such checkpoint, or it has no text tower or tokenizer.
    """
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

    from runner.backbones.hub import TOKENIZER, is_safe, local_checkpoint
    from runner.backbones.pretrained import quiet

    where = f"head.checkpoint={checkpoint}"
    directory = local_checkpoint(checkpoint, "head.checkpoint", also=TOKENIZER)
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        own = {k: v for k, v in (found.get("text_config") or {}).items() if k != "model_type"}
        config = CLIPTextConfig(**{**own, "projection_dim": found.get("projection_dim", 512)})
        with quiet():
            tower, report = CLIPTextModelWithProjection.from_pretrained(
                directory,
                config=config,
                use_safetensors=is_safe(directory),
                weights_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a damaged or foreign checkpoint makes transformers raise
        raise UserError(f"{where} cannot be loaded as CLIP: {first_line(error, 'no message')}") from error
    if report["missing_keys"]:
        raise UserError(
            f"{where} has no text tower: {len(report['missing_keys'])} of its tensors are missing",
            "name the whole CLIP model, not its image encoder alone",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of several libraries: no such file, a damaged one
        raise UserError(
            f"{where} has no tokenizer: {first_line(error, 'no message')}", "save it beside the weights"
        ) from error
    texts = [template.replace("{}", c) for c in classes for template in templates]
    limit = tower.config.max_position_embeddings
    with torch.inference_mode():
        parts = []
        for begin in range(0, len(texts), BATCH):
            batch = tokenizer(
                texts[begin : begin + BATCH], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            embedded = tower.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).text_embeds
            parts.append(F.normalize(embedded, dim=-1))
        mean_CD = torch.cat(parts).unflatten(0, (len(classes), len(templates))).mean(1)
    return F.normalize(mean_CD, dim=-1).clone(), learned_scale(directory)


def learned_scale(directory: Path) -> float:
    """exp(logit_scale) of a checkpoint; 100, where it has none."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if "logit_scale" in tensors.keys():  # noqa: SIM118 - not a mapping
                return float(tensors.get_tensor("logit_scale").float().exp())
    for file in sorted(directory.glob("pytorch_model*.bin")):
        held = torch.load(file, map_location="cpu", weights_only=True)
        if "logit_scale" in held:
            return float(held["logit_scale"].float().exp())
    return 100.0
