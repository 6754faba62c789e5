"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from runner.backbones.neck import LevelNorms
from runner.backbones.pretrained import checked_drop_path, make_trunk
from runner.backbones.staged import StageRun, through
from runner.config.kinds import Fraction, NonNegativeInt
from runner.specs import FeatureSpec, InputSpec

PRESETS = {
    "tiny": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "convnext_tiny": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "small": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]},
    "base": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
    "large": {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
    "xlarge": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 3, 27, 3]},
}


class ConvNext(ImageBackbone):
    """Convolutional network of the Swin era, without BatchNorm; pyramid of its four stages, each with a LayerNorm.

    The last level and the pooled vector use the trunk's own final LayerNorm, the other levels one of the neck's.
    Layer groups: stem, then one per block; a stage's downsampling belongs to its first block.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "convnext_tiny", "small", "base", "large", "xlarge"] | None = "convnext_tiny",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        drop_path: Fraction | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        trunk = make_trunk(
            "convnext",
            PRESETS,
            size,
            pretrained,
            settings={"drop_path_rate": checked_drop_path(drop_path)},
            ignore=[r"^classifier\."],
        )
        channels = tuple(trunk.config.hidden_sizes)
        strides = tuple(trunk.config.patch_size * 2**i for i in range(len(channels)))
        super().__init__(inputs, FeatureSpec(channels, strides, channels[-1]), mean, std, multiple=strides[-1])
        self.trunk = trunk
        self.neck: LevelNorms | None = LevelNorms(channels[:-1])
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return [layer for stage in self.trunk.encoder.stages for layer in stage.layers]

    def trunk_groups(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[self.trunk.embeddings]]
        for stage in self.trunk.encoder.stages:
            groups += [[layer] for layer in stage.layers]
            groups[-len(stage.layers)].insert(0, stage.downsampling_layer)
        groups[-1].append(self.trunk.layernorm)
        return groups

    def neck_modules(self) -> list[nn.Module]:
        return [self.neck] if self.neck is not None else []

    def drop_unwanted(self) -> None:
        if "dense" not in self.wanted:
            self.neck = None

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = self.trunk.embeddings(x_BCHW)
        levels = []
        for stage in self.trunk.encoder.stages:
            x_BCHW = stage(x_BCHW)
            levels.append(x_BCHW)
        return levels

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        return self.trunk.embeddings(x_BCHW)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        for layer in self.trunk.encoder.stages[index].downsampling_layer:
            x = layer(x)
        return through(self.stage_blocks(index), x)

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.trunk.encoder.stages[index].layers)

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        last_BCHW = self.trunk.layernorm(levels[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return [*self.neck(levels[:-1]), last_BCHW]

    def pool(self, levels: list[Tensor]) -> Tensor:
        return self.trunk.layernorm(levels[-1].mean((-2, -1)))
