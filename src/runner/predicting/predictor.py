"""A run's model, ready for one picture after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from runner.config.schema import TrainerConfig
from runner.errors import RunFailed, UserError
from runner.exporting.folder import plain_model
from runner.launching.rundir import RunDirectory
from runner.tasks.base import Task
from runner.training.checkpoints import Checkpoints
from runner.types import Group, final

LEAST = 32
"""Pixels of a picture's shorter side below which networks have nothing left to look at."""


@dataclass
class Predictor:
    """A model and its dense tasks.

    Attributes:
        model: in evaluation mode, on its device.
        tasks: the dense ones. others: names of the tasks that are not.
        area: pixels of a training image.
        precision: of the forward pass, as in training.
    """

    model: nn.Module
    tasks: dict[str, Task]
    others: list[str]
    area: int
    device: torch.device
    precision: str

    @classmethod
    def open(cls, run: RunDirectory, checkpoint: str, device: str) -> Predictor:
        """A run's model with a checkpoint's weights; the run's data need not be there.

        Raises:
            UserError: the run is not about images, has no dense task or no such checkpoint, or there is no such device.
        """
        config = run.config()
        parts, _ = plain_model(config, Checkpoints(run.path / "checkpoints").find(checkpoint), None)
        dense = {name: task for name, task in parts.tasks.items() if task.kind == "dense"}
        if parts.inputs.kind != "image" or not dense:
            raise UserError(
                f"'{run.path}' reads {parts.inputs.kind}s and has no dense task"
                if not dense
                else f"'{run.path}' reads {parts.inputs.kind}s",
                "runner predict colours the pixels of pictures: give a run with a dense task",
                "runner status outputs",
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU here", "--device cpu", "runner doctor")
        place = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
        size = parts.inputs.size or (64, 64)
        precision = TrainerConfig(**config["trainer"]).precision
        others = [name for name in parts.tasks if name not in dense]
        return cls(parts.model.to(place).eval(), dense, others, size[0] * size[1], place, precision)

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
