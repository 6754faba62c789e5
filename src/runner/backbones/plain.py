"""What plain vision transformers share: tokens of one size, made into a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.image import ImageBackbone
from runner.backbones.neck import PlainPyramid
from runner.backbones.staged import StageRun, through
from runner.specs import FeatureSpec, InputSpec


class PlainTransformer(ImageBackbone):
    """[CLS] and patch tokens → a pyramid, and one pooled vector.

    Every map is normalised with the trunk's final LayerNorm before it enters the pyramid. The maps come from four
    evenly spaced blocks ("taps": 6, 12, 18 and 24 of 24, as in DPT, Ranftl et al. 2021, arXiv 2103.13413, and InvPT)
    or all from the last block ("last": ViTDet, Li et al. 2022, arXiv 2203.16527).

    Args:
        patch: input pixels per side that one token stands for; the pyramid's strides are a quarter, a half, once
            and twice that.
        pooling: "first" takes the [CLS] token, "mean" the mean of the patch tokens.
    """

    def __init__(
        self,
        inputs: InputSpec,
        trunk: Any,
        patch: int,
        pyramid: Literal["taps", "last"],
        pooling: Literal["first", "mean"],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        dim = trunk.config.hidden_size
        neck = PlainPyramid(dim)
        spec = FeatureSpec(neck.channels, (patch // 4, patch // 2, patch, 2 * patch), dim)
        super().__init__(inputs, spec, mean, std, multiple=2 * patch)
        self.trunk = trunk
        trunk.embeddings.interpolate_pos_encoding = _Positions(trunk.embeddings, trunk.config.patch_size)
        self.neck: PlainPyramid | None = neck
        self.patch, self.pooling = patch, pooling
        count = trunk.config.num_hidden_layers
        quarters = [max(1, count * i // 4) for i in (1, 2, 3, 4)]
        self.taps = quarters if pyramid == "taps" else [count] * 4
        self.stage_ends = quarters

    def neck_modules(self) -> list[nn.Module]:
        return [self.neck] if self.neck is not None else []

    def drop_unwanted(self) -> None:
        if "dense" not in self.wanted:
            self.neck = None

    def norm(self, tokens_BTD: Tensor) -> Tensor:
        """The trunk's final LayerNorm."""
        return self.trunk.layernorm(tokens_BTD)

    def encode(self, x_BCHW: Tensor, all_blocks: bool) -> tuple[Tensor, Sequence[Tensor]]:
        """Normalised last tokens (B, 1 + N, D), and where wanted those before and after every block."""
        raise NotImplementedError

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        height, width = (side // self.patch for side in x_BCHW.shape[-2:])
        dense = "dense" in self.wanted
        last_BTD, blocks = self.encode(x_BCHW, dense)
        levels = [last_BTD]
        for tap in self.taps if dense else ():
            tokens_BTD = last_BTD if tap == self.taps[-1] else self.norm(blocks[tap])
            levels.append(tokens_BTD[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return levels

    def entry_norm(self, block: nn.Module) -> nn.Module:
        """The LayerNorm before a block's attention."""
        norm: Any = getattr(block, "layernorm_before", None) or block.norm1
        return norm

    def scores(self, block: nn.Module, query_BQD: Tensor, key_BKD: Tensor) -> Tensor:
        """(B, heads, Q, K): what a block's attention compares, products of queries and keys of normalised tokens.

        They are neither scaled nor normalised.
        """
        attention: Any = block.attention
        query, key = (
            layer(x).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for layer, x in ((attention.q_proj, query_BQD), (attention.k_proj, key_BKD))
        )
        return query @ key.transpose(-2, -1)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Four stages of tokens, whatever the taps."""
        return (self.spec.dim,) * len(self.stage_ends)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """None: states are (B, D, 1 + N), the [CLS] token first."""
        return ()

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """(B, 1 + N, D), what the first block reads."""
        return self.trunk.embeddings(x_BCHW)

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        run.grid = height // self.patch, width // self.patch
        return self.embed(x_BCHW).transpose(1, 2)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        inner, outer = through(self.stage_blocks(index), x.transpose(1, 2), self.run_block)
        return inner.transpose(1, 2), outer.transpose(1, 2)

    def run_block(self, block: Any, tokens_BTD: Tensor) -> Tensor:
        """One block of the trunk."""
        return block(tokens_BTD)

    def stage_blocks(self, index: int) -> list[nn.Module]:
        start = self.stage_ends[index - 1] if index else 0
        return self.blocks()[start : self.stage_ends[index]]

    def stage_levels(self, states: list[Tensor], run: StageRun) -> list[Tensor]:
        by_end = dict(zip(self.stage_ends, states, strict=True))
        normal = {end: self.norm(by_end[end].transpose(1, 2)) for end in {*self.taps, self.stage_ends[-1]}}
        levels = [normal[self.stage_ends[-1]]]
        for tap in self.taps if "dense" in self.wanted else ():
            levels.append(normal[tap][:, 1:].transpose(1, 2).unflatten(2, run.grid or ()))
        return levels

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        return self.neck(levels[1:])

    def pool(self, levels: list[Tensor]) -> Tensor:
        return levels[0][:, 0] if self.pooling == "first" else levels[0][:, 1:].mean(1)


class _Positions:
    """Position embeddings for any grid of patches: what transformers does with `interpolate`, as matrix products.

    Bicubic interpolation is linear and separable, and its own backward pass is not deterministic on GPUs. Positions
    are laid out on a square grid after that of the [CLS] token.
    """

    def __init__(self, embeddings: nn.Module, patch: int) -> None:
        self.embeddings, self.patch = embeddings, patch

    def __call__(self, tokens_BTD: Tensor, height: int, width: int) -> Tensor:
        table_1TD = self.embeddings.position_embeddings
        side = round((table_1TD.shape[1] - 1) ** 0.5)
        grid = height // self.patch, width // self.patch
        if grid == (side, side):
            return table_1TD
        with torch.autocast(table_1TD.device.type, enabled=False):
            square_HWD = table_1TD[0, 1:].unflatten(0, (side, side))
            rows, columns = (bicubic_matrix(side, new, table_1TD) for new in grid)
            patches_HWD = torch.einsum("ih,hwd,jw->ijd", rows, square_HWD, columns)
        return torch.cat([table_1TD[:, :1], patches_HWD.flatten(0, 1).unsqueeze(0)], dim=1)


def bicubic_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old) weights of one-dimensional bicubic resizing, borders repeated."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(identity, size=(new, old), mode="bicubic", align_corners=False)[0, 0]


def scaled(x_BCHW: Tensor, numerator: int, denominator: int) -> Tensor:
    """Images resized by a fraction that divides their sides."""
    size = [side * numerator // denominator for side in x_BCHW.shape[-2:]]
    return F.interpolate(x_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False)
