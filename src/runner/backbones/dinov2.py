"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD
from runner.backbones.plain import PlainTransformer, scaled
from runner.backbones.pretrained import attention_choice, checked_drop_path, make_trunk
from runner.config.kinds import Fraction, NonNegativeInt
from runner.specs import InputSpec


def _preset(width: int, layers: int, heads: int, swiglu: bool = False) -> dict[str, int | bool]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "use_swiglu_ffn": swiglu,
        "patch_size": 14,
    }


PRESETS = {
    "tiny": _preset(64, 4, 2),
    "small": _preset(384, 12, 6),
    "base": _preset(768, 12, 12),
    "large": _preset(1024, 24, 16),
    "giant": _preset(1536, 40, 24, swiglu=True),
}
CELL = 16
"""Input pixels per side that one token stands for; images are scaled so that its patch covers them."""


class DINOv2(PlainTransformer):
    """Plain transformer with self-supervised checkpoints, strong when frozen.

    Its patches of 14 pixels would give strides that are no whole numbers, so images are scaled by 14/16: a token then
    stands for 16 pixels of the input and the strides are those of every other backbone, 4, 8, 16 and 32.
    Layer groups: embeddings, then one per block.
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "small", "base", "large", "giant"] | None = "base",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        pyramid: Literal["taps", "last"] = "taps",
        pooling: Literal["first", "mean"] = "first",
        drop_path: Fraction | None = None,
        attention: Literal["auto", "eager", "sdpa"] = "auto",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        trunk = make_trunk(
            "dinov2",
            PRESETS,
            size,
            pretrained,
            settings={
                "drop_path_rate": checked_drop_path(drop_path),
                "use_mask_token": False,
                "attn_implementation": attention_choice(attention),
            },
            scratch={"image_size": 518},
            ignore=[r"^classifier\.", r"mask_token$"],
        )
        super().__init__(inputs, trunk, CELL, pyramid, pooling, mean, std)
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.encoder.layer)

    def trunk_groups(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[self.trunk.embeddings], *([block] for block in self.blocks())]
        groups[-1].append(self.trunk.layernorm)
        return groups

    def embed(self, x_BCHW: Tensor) -> Tensor:
        return self.trunk.embeddings(scaled(x_BCHW, self.trunk.config.patch_size, CELL))

    def encode(self, x_BCHW: Tensor, all_blocks: bool) -> tuple[Tensor, Sequence[Tensor]]:
        x_BCHW = scaled(x_BCHW, self.trunk.config.patch_size, CELL)
        output = self.trunk(x_BCHW, output_hidden_states=all_blocks)
        return output.last_hidden_state, output.hidden_states or ()
