"""A run's model, ready for one picture after the other."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from runner.errors import RunFailed
from runner.predicting.opened import Opened
from runner.tasks.base import Task
from runner.types import Group, final

LEAST = 32
"""Pixels of a picture's shorter side below which networks have nothing left to look at."""


@dataclass
class Predictor:
    """A model and its dense tasks.

    Attributes:
        model: in evaluation mode, on its device.
        tasks: the dense ones.
        area: pixels of a training image.
        precision: of the forward pass, as in training.
    """

    model: nn.Module
    tasks: dict[str, Task]
    area: int
    device: torch.device
    precision: str

    @classmethod
    def of(cls, opened: Opened, tasks: Collection[str] | None = None) -> Predictor:
        """Of a run that was opened.

        Args:
            tasks: dense ones; None for all that are.
        """
        dense = {name: task for name, task in opened.parts.tasks.items() if task.kind == "dense"}
        wanted = {name: task for name, task in dense.items() if tasks is None or name in tasks}
        size = opened.parts.inputs.size or (64, 64)
        return cls(opened.model, wanted, size[0] * size[1], opened.device, opened.settings.precision)

    def predict(self, image: Image.Image, size: Literal["model", "native"] = "model") -> dict[str, np.ndarray]:
        """Task → raw prediction (C, H, W), float32, at the picture's own size.

        Args:
            image: RGB of any size. size: "model" looks at it with about the pixels of a training image, whatever its
                proportions; "native" at every pixel of it.

        Raises:
            RunFailed: there is not enough memory.
        """
        looked = image if size == "native" else image.resize(self.looked_at(image.size), Image.Resampling.BILINEAR)
        pixels_HW3 = torch.from_numpy(np.asarray(looked).copy())
        group = Group("picture", {"pixels": (pixels_HW3.permute(2, 0, 1)[None].float() / 255).to(self.device)})
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.float32)
        mixed = self.device.type == "cuda" and kind != torch.float32
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, kind, enabled=mixed):
                predictions = self.model(group, list(self.tasks))
                full = (image.height, image.width)
                return {name: _enlarged(final(predictions[name]).float(), full)[0].cpu().numpy() for name in self.tasks}
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"a picture of {image.width} x {image.height} does not fit into the GPU's memory",
                "--size model, or --device cpu",
            ) from error

    def looked_at(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) at which the model looks at a picture of this (width, height)."""
        zoom = math.sqrt(self.area / (size[0] * size[1]))
        return max(round(size[0] * zoom), LEAST), max(round(size[1] * zoom), LEAST)


def _enlarged(prediction_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(prediction_BCHW.shape[-2:]) == size:
        return prediction_BCHW
    shrinks = prediction_BCHW.shape[-1] > size[1]
    return F.interpolate(prediction_BCHW, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
