"""What all image backbones share: normalisation, padding to whole patches, cropping of features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.backbones.neck import LevelNorms, PlainPyramid
from runner.backbones.staged import StageRun
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec, TaskKind
from runner.types import Features

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageBackbone(Backbone):
    """pixels (B, 3, H, W) in [0, 1] of any size → a pyramid and a pooled vector.

    A subclass implements `stages` and `pool`, and `stem` and `stage` for those who drive it stage by stage
    (`runner.backbones.staged`). Level l of the pyramid has ceil(H / stride_l) × ceil(W / stride_l)
    cells; a cell covers stride_l × stride_l pixels counted from the top left corner, so that heads that upsample by
    the stride and crop are aligned for every image size.

    Args:
        inputs: must be of kind "image".
        spec: what the subclass produces.
        mean, std: of the training images per channel, in [0, 1].
        multiple: the trunk needs sides that are multiples of this; images are padded at the bottom and right with
            the mean colour.
    """

    serves = ("dense", "pooled")

    def __init__(
        self, inputs: InputSpec, spec: FeatureSpec, mean: Sequence[float], std: Sequence[float], multiple: int = 1
    ) -> None:
        super().__init__()
        if inputs.kind != "image":
            raise UserError(f"this backbone reads images, the mixture feeds it {inputs.kind}", see="runner ls backbone")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError("backbone.mean and backbone.std need three numbers each, std above 0")
        self.spec = spec
        self.stage_spec = spec  # of the states between stages, whatever levels are kept
        self.kept: tuple[int, ...] | None = None
        self.multiple = multiple
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Features of `inputs["pixels"]`."""
        x_BCHW = self._prepare(inputs["pixels"])
        return self._features(self.stages(x_BCHW), inputs["pixels"].shape[-2:], self.wanted)

    def _prepare(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised images, padded to whole cells."""
        height, width = pixels_BCHW.shape[-2:]
        x_BCHW = (pixels_BCHW - self.mean) / self.std
        if width % self.multiple or height % self.multiple:
            x_BCHW = F.pad(x_BCHW, (0, -width % self.multiple, 0, -height % self.multiple))
        return x_BCHW

    def _features(self, levels: list[Tensor], size: Sequence[int], kinds: Collection[TaskKind]) -> Features:
        """What tasks of these kinds read of the trunk's outputs."""
        height, width = size
        features = Features(size=(height, width))
        if "pooled" in kinds:
            features.pooled = self.pool(levels)
        if "dense" in kinds:
            pyramid = self.pyramid(levels)
            kept = pyramid if self.kept is None else [pyramid[index] for index in self.kept]
            features.pyramid = [
                level_BCHW[..., : -(-height // stride), : -(-width // stride)]
                for level_BCHW, stride in zip(kept, self.spec.strides, strict=True)
            ]
        return features

    def keep_levels(self, indices: Sequence[int]) -> None:
        """Make some levels of the pyramid only; parts of the neck that serve the others are dropped.

        An architecture that does not read all of them calls it after `restrict`, for the same reason.
        """
        self.kept = tuple(indices)
        channels, strides = (tuple(values[i] for i in self.kept) for values in (self.spec.channels, self.spec.strides))
        self.spec = replace(self.spec, channels=channels, strides=strides)
        for module in self.neck_modules():
            if isinstance(module, LevelNorms | PlainPyramid):
                module.keep(self.kept)

    def entry_channels(self) -> int:
        """Channels of what the first stage reads: looked at, since stems differ."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        with torch.no_grad():
            entry, _ = self.begin({"pixels": torch.zeros(1, 3, 64, 64)})
        for module, mode in modes.items():
            module.training = mode
        return entry.shape[1]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the state after each stage."""
        return self.stage_spec.channels

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """Channels of the inner map of each stage."""
        return self.stage_channels

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Input pixels per cell of the state after each stage."""
        return self.stage_spec.strides

    def begin(self, inputs: dict[str, Tensor]) -> tuple[Tensor, StageRun]:
        """Images → what the first stage reads."""
        x_BCHW = self._prepare(inputs["pixels"])
        height, width = inputs["pixels"].shape[-2:]
        run = StageRun(size=(height, width))
        return self.stem(x_BCHW, run), run

    def collect(self, states: list[Tensor], run: StageRun, kind: TaskKind | None = None) -> Features:
        """The states after every stage → features, with a kind those alone that its tasks read."""
        kinds = self.wanted if kind is None else {kind}
        return self._features(self.stage_levels(states, run), run.size or (), kinds)

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        """What comes before the first stage; the base has nothing there."""
        return x_BCHW

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        """One stage: (what enters its last block, its output), the same tensor twice where it has one block."""
        raise NotImplementedError

    def stage_blocks(self, index: int) -> list[nn.Module]:
        """The blocks of a stage, from input to output."""
        raise NotImplementedError

    def stage_levels(self, states: list[Tensor], run: StageRun) -> list[Tensor]:
        """The states after every stage → what `stages` gives."""
        return states

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        """The trunk's outputs for normalised, padded images; what they are is the subclass's business."""
        raise NotImplementedError

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        """Stage outputs → the pyramid, fine to coarse, not yet cropped."""
        return levels

    def pool(self, levels: list[Tensor]) -> Tensor:
        """Stage outputs → (B, D); here the mean over the coarsest map, which ends in `spec.channels[-1]` channels."""
        return levels[-1].mean((-2, -1))
