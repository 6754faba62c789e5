"""Pyramid Vision Transformer v2 (Wang et al. 2022, arXiv 2106.13797)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD
from runner.backbones.mix import MixBackbone
from runner.backbones.pretrained import checked_drop_path, make_trunk
from runner.config.kinds import Fraction, NonNegativeInt
from runner.specs import InputSpec

_WIDE = {"hidden_sizes": [64, 128, 320, 512], "mlp_ratios": [8, 8, 4, 4]}
PRESETS = {
    "tiny": {
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "mlp_ratios": [4, 4, 2, 2],
        "num_attention_heads": [1, 2, 4, 8],
    },
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "mlp_ratios": [8, 8, 4, 4]},
    "b1": {**_WIDE, "depths": [2, 2, 2, 2]},
    "b2": {**_WIDE, "depths": [3, 4, 6, 3]},
    "b3": {**_WIDE, "depths": [3, 4, 18, 3]},
    "b4": {**_WIDE, "depths": [3, 8, 27, 3]},
    "b5": {**_WIDE, "depths": [3, 6, 40, 3], "mlp_ratios": [4, 4, 4, 4]},
}


class PvtV2(MixBackbone):
    """Hierarchical transformer with overlapping patches; pyramid of its four stages.

    Layer groups: one per block, a stage's patch embedding with its first block.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "b0", "b1", "b2", "b3", "b4", "b5"] | None = "b2",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        drop_path: Fraction | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        trunk = make_trunk(
            "pvt_v2",
            PRESETS,
            size,
            pretrained,
            settings={"drop_path_rate": checked_drop_path(drop_path)},
            ignore=[r"^classifier\."],
        )
        super().__init__(inputs, trunk, mean, std)
        self.finish(frozen, gradient_checkpointing)

    def trunk_stages(self) -> list[tuple[nn.Module, nn.ModuleList, nn.Module]]:
        return [(stage.patch_embedding, stage.blocks, stage.layer_norm) for stage in self.trunk.encoder.layers]

    def run_block(self, block: Any, tokens_BTD: Tensor, height: int, width: int) -> Tensor:
        return block(tokens_BTD, height, width, False)[0]
