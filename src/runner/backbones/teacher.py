"""Frozen image networks of any family that transformers knows, as teachers: pixels → maps at several depths."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from runner.backbones.hub import PREPROCESSOR, is_safe, local_checkpoint
from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD
from runner.backbones.pretrained import quiet
from runner.backbones.swin import Shift
from runner.errors import UserError, first_line

CELL = 16
"""Input pixels per side that a patch of a plain transformer is made to cover, whatever its own patch size."""


class Teacher(nn.Module):
    """A pretrained vision encoder that is never trained: plain transformers (ViT, DINOv2, CLIP, SAM, …) and pyramids.

    Images are normalised as its preprocessor says (ImageNet's numbers where it has none). A plain transformer sees
    them scaled so that one token covers 16 × 16 pixels; one that takes images of one size only (SAM) sees them scaled
    to fit and padded, and what it makes of the padding is cut off.

    Args:
        pretrained: a hub id or a directory with config.json and weights.
        key: of the configuration, for messages.

    Raises:
        UserError: there is no such checkpoint, or it is no image encoder.
    """

    def __init__(self, pretrained: str, key: str) -> None:
        super().__init__()
        folder = local_checkpoint(pretrained, key, also=PREPROCESSOR)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with quiet():
                whole, report = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=is_safe(folder),
                    weights_only=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except Exception as error:  # whatever a damaged or unknown checkpoint makes transformers raise
            raise UserError(f"{key}={pretrained} cannot be loaded by transformers: {first_line(error)}") from error
        parts = (getattr(whole, name, None) for name in ("vision_model", "vision_encoder", "vision_tower"))
        self.model: Any = next((part for part in parts if part is not None), whole)
        inside = {name for name, part in whole.named_modules() if part is self.model}.pop()
        lost = [k for k in report["missing_keys"] if k.startswith(inside) and "pooler" not in k and "head" not in k]
        if lost:
            raise UserError(f"{key}={pretrained} lacks weights: {lost[0]} ({len(lost)} tensors missing in all)")
        for block in self.model.modules():
            if hasattr(block, "set_shift_and_window_size"):
                block.set_shift_and_window_size = Shift(block)
        config = self.model.config
        self.options = {"output_hidden_states": True}
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        patch = getattr(config, "patch_size", None)
        self.patch: int | None = patch if isinstance(patch, int) else None
        self.side: int | None = None
        mean, std = _statistics(folder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        try:
            self._probe()
        except Exception as error:
            raise UserError(
                f"{key}={pretrained} gives no hidden states for an image", "choose a vision model"
            ) from error

    def _probe(self) -> None:
        """Find out whether it takes images of any size, and how wide its maps are."""
        native = getattr(self.model.config, "image_size", None)
        try:
            self.widths = [m.shape[1] for m in self.all_maps(torch.zeros(1, 3, 4 * CELL, 6 * CELL))]
        except Exception:
            if not isinstance(native, int):
                raise
            self.side = native
            self.widths = [m.shape[1] for m in self.all_maps(torch.zeros(1, 3, 4 * CELL, 6 * CELL))]

    def train(self, mode: bool = True) -> Teacher:
        """It stays in evaluation mode."""
        return super().train(False)

    def chosen(self, count: int) -> list[int]:
        """Which of its maps stand for `count` evenly spaced depths; the last is always the last."""
        return evenly(len(self.widths), count)

    @torch.no_grad()
    def all_maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W) after every block (or stage) of images in [0, 1]."""
        height, width = pixels_BCHW.shape[-2:]
        x_BCHW = (pixels_BCHW - self.mean) / self.std
        if self.side is not None:
            factor = self.side / max(height, width)
            inside = max(1, round(height * factor)), max(1, round(width * factor))
            x_BCHW = _resize(x_BCHW, inside)
            x_BCHW = F.pad(x_BCHW, (0, self.side - inside[1], 0, self.side - inside[0]))
        elif self.patch is not None and self._plain:
            inside = -(-height // CELL) * self.patch, -(-width // CELL) * self.patch
            x_BCHW = _resize(x_BCHW, inside)
        else:
            inside = height, width
        output = self.model(x_BCHW, **self.options)
        hidden = getattr(output, "reshaped_hidden_states", None) or output.hidden_states
        made = [self._map(state, x_BCHW.shape[-2:]) for state in hidden[1:]]
        keep = [inside[i] / x_BCHW.shape[i - 2] for i in (0, 1)]
        return [m[..., : max(1, round(m.shape[-2] * keep[0])), : max(1, round(m.shape[-1] * keep[1]))] for m in made]

    @property
    def _plain(self) -> bool:
        """Whether it keeps one width and resolution, as far as its configuration says."""
        return not any(hasattr(self.model.config, key) for key in ("depths", "hidden_sizes", "embed_dims"))

    def _map(self, state: Tensor, size: Any) -> Tensor:
        if state.ndim == 4:  # channels first, or last as in SAM: plain transformers have them last
            return state.permute(0, 3, 1, 2) if self._plain else state
        assert self.patch is not None
        rows, columns = (side // self.patch for side in size)
        return state[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def evenly(depths: int, count: int) -> list[int]:
    """`count` evenly spaced indices of so many depths; the last is the last."""
    return [max(0, depths * (i + 1) // count - 1) for i in range(count)]


def _resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x_BCHW.shape[-2:]) == size:
        return x_BCHW
    return F.interpolate(x_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False)


def _statistics(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the images it was trained on."""
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(found.get("image_mean") or IMAGENET_MEAN), list(found.get("image_std") or IMAGENET_STD)
