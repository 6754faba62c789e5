"""A run of one's own as a teacher: the backbone of an exported folder, frozen, as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from runner.backbones.hub import PREPROCESSOR, local_checkpoint, local_config
from runner.backbones.image import ImageBackbone
from runner.backbones.teacher import Teacher, evenly
from runner.errors import UserError
from runner.exporting.reading import WHERE, load_folder


def open_teacher(pretrained: str, key: str) -> Teacher | RunTeacher:
    """The teacher that a hub id or a folder names: an exported run by its own settings, all else by transformers.

    A run's backbone may compute otherwise than transformers does from the same weights (`backbone.stem_pool`).

    Raises:
        UserError: there is no such checkpoint, or it is no image encoder.
    """
    folder = local_checkpoint(pretrained, key, also=PREPROCESSOR)
    return RunTeacher(folder, key) if (Path(folder) / WHERE / "export.json").is_file() else Teacher(pretrained, key)


def look_for(teachers: Mapping[str, str]) -> None:
    """Ask for every teacher's config.json, before gigabytes of the first are downloaded.

    Args:
        teachers: path → hub id or folder.

    Raises:
        UserError: all that are not there.
    """
    problems = []
    for name, pretrained in teachers.items():
        try:
            local_config(pretrained, f"wrapper.teachers.{name}")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


class RunTeacher(nn.Module):
    """The pyramid of a trained run's backbone; the interface is that of `Teacher`.

    Args:
        folder: what `runner export` wrote.
        key: of the configuration, for messages.

    Raises:
        UserError: the folder is damaged, or its model has no single image backbone with a pyramid.
    """

    def __init__(self, folder: Path, key: str) -> None:
        super().__init__()
        backbone = getattr(load_folder(folder).model, "backbone", None)
        if not isinstance(backbone, ImageBackbone) or "dense" not in backbone.wanted:
            raise UserError(
                f"{key}={folder} is an exported run without one image backbone that gives maps",
                "train the teacher with architecture=hard_sharing on a dense task, such as depth",
            )
        self.backbone = backbone
        self.requires_grad_(False)
        self.eval()
        self.widths = [level.shape[1] for level in self.all_maps(torch.zeros(1, 3, 64, 96))]

    def train(self, mode: bool = True) -> RunTeacher:
        """It stays in evaluation mode."""
        return super().train(False)

    def chosen(self, count: int) -> list[int]:
        """Which of its levels stand for `count` evenly spaced depths; the last is always the last."""
        return evenly(len(self.widths), count)

    @torch.no_grad()
    def all_maps(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """(B, C, H, W) at every level of the pyramid of images in [0, 1]."""
        levels = self.backbone({"pixels": pixels_BCHW}).pyramid
        assert levels is not None
        return levels
