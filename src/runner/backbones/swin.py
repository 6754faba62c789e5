"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from runner.backbones.neck import LevelNorms
from runner.backbones.pretrained import attention_choice, checked_drop_path, make_trunk
from runner.backbones.staged import StageRun, through
from runner.config.kinds import Fraction, NonNegativeInt, PositiveInt
from runner.specs import FeatureSpec, InputSpec

PRESETS = {
    "tiny": {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]},
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
}


class Swin(ImageBackbone):
    """Attention in shifted windows; pyramid of its four stages before downsampling, each with a LayerNorm.

    The last level and the pooled vector (its mean) use the trunk's own final LayerNorm, the other levels one of the
    neck's. Layer groups: patch embedding, then one per block; a stage's downsampling belongs to its last block.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "swin_tiny", "small", "base", "large"] | None = "swin_tiny",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        drop_path: Fraction | None = None,
        window: PositiveInt | None = None,
        attention: Literal["auto", "eager", "sdpa"] = "auto",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        trunk = make_trunk(
            "swin",
            PRESETS,
            size,
            pretrained,
            settings={
                "drop_path_rate": checked_drop_path(drop_path),
                "window_size": window,
                "attn_implementation": attention_choice(attention),
            },
            ignore=[r"^classifier\.", r"^decoder\.", r"relative_position_index$", r"mask_token$"],
            add_pooling_layer=False,
        )
        factors = [2**i for i in range(len(trunk.config.depths))]
        channels = tuple(trunk.config.embed_dim * factor for factor in factors)
        strides = tuple(trunk.config.patch_size * factor for factor in factors)
        super().__init__(inputs, FeatureSpec(channels, strides, channels[-1]), mean, std)
        self.trunk = trunk
        for block in self.blocks():
            block.set_shift_and_window_size = Shift(block)
        self.neck: LevelNorms | None = LevelNorms(channels[:-1])
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.trunk.encoder.layers for block in stage.blocks]

    def trunk_groups(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[self.trunk.embeddings]]
        for stage in self.trunk.encoder.layers:
            groups += [[block] for block in stage.blocks]
            if stage.downsample is not None:
                groups[-1].append(stage.downsample)
        groups[-1].append(self.trunk.layernorm)
        return groups

    def neck_modules(self) -> list[nn.Module]:
        return [self.neck] if self.neck is not None else []

    def drop_unwanted(self) -> None:
        if "dense" not in self.wanted:
            self.neck = None

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        output = self.trunk(
            x_BCHW,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
            interpolate_pos_encoding=True,
        )
        return self._normalised(list(output.reshaped_hidden_states[1:]))

    def _normalised(self, levels: list[Tensor]) -> list[Tensor]:
        last_BCHW = self.trunk.layernorm(levels[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return [*levels[:-1], last_BCHW]

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        tokens_BTD, grid = self.trunk.embeddings(x_BCHW, interpolate_pos_encoding=True)
        return tokens_BTD.unflatten(1, grid).permute(0, 3, 1, 2)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        """A stage's downsampling runs at the start of the next one, so that states are those of the pyramid."""
        height, width = x.shape[-2:]
        tokens_BTD = x.permute(0, 2, 3, 1).flatten(1, 2)
        if index > 0:
            tokens_BTD = self.trunk.encoder.layers[index - 1].downsample(tokens_BTD, (height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        both = through(self.stage_blocks(index), tokens_BTD, lambda block, y_BTD: block(y_BTD, (height, width))[0])
        inner, outer = (y_BTD.unflatten(1, (height, width)).permute(0, 3, 1, 2) for y_BTD in both)
        return inner, outer

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.trunk.encoder.layers[index].blocks)

    def stage_levels(self, states: list[Tensor], run: StageRun) -> list[Tensor]:
        return self._normalised(states)

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        return [*self.neck(levels[:-1]), levels[-1]]


class Shift:
    """Decides in every forward pass whether a block shifts its windows: not where one window covers the map.

    The rule of the published code, under which checkpoints were trained. transformers' own method applies it once and
    for all, so that one small image would end shifting for good, and its `always_partition` never applies it.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block, self.shift = block, block.shift_size

    def __call__(self, resolution: tuple[int, int]) -> None:
        self.block.shift_size = self.shift if min(resolution) > self.block.window_size else 0
