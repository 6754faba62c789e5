"""HRNet, the high-resolution network (Wang et al. 2020, arXiv 1908.07919), the backbone of PAD-Net, MTI-Net, ATRC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.backbones.hrnet_layers import PRESETS, Exchange, HighResolutionNet, Upsampling
from runner.backbones.hub import local_checkpoint, local_config
from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from runner.backbones.resnet import set_norm
from runner.backbones.staged import StageRun, through
from runner.backbones.timm_checkpoints import load_weights, read_architecture, save_folder
from runner.config.kinds import NonNegativeInt
from runner.errors import UserError, suggest
from runner.specs import FeatureSpec, InputSpec

HEAD = [r"^incre_modules\.", r"^downsamp_modules\.", r"^final_layer\.", r"^classifier\."]
"""Of published checkpoints the parts of the classification head, which are left out."""
STRIDES = (4, 8, 16, 32)


class HRNetTrunk(HighResolutionNet):
    """The network, with the two ways of transformers' models to the disk that runner uses."""

    @property
    def architecture(self) -> str:
        """Its name in timm."""
        return f"hrnet_{self.size}"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `backbone.pretrained` and timm read."""
        save_folder(Path(folder), self.architecture, self.state_dict(), {"head": ""})

    def complete(self) -> bool:
        """Whether it holds all tensors of the published network, and no others."""
        with torch.device("meta"):
            fresh = HighResolutionNet(self.size).state_dict()
        state = self.state_dict()
        return state.keys() == fresh.keys() and all(state[k].shape == fresh[k].shape for k in state)


class HRNet(ImageBackbone):
    """Branches at four resolutions in parallel, which exchange features; pyramid of the four, pooled from all of them.

    The pooled vector holds the mean of every branch. Layer groups: stem, then one per stage (5). Stage by stage, a
    state holds all branches side by side at the finest resolution, each cell of a coarser one repeated; what an
    architecture makes of it is averaged over those cells again before the next stage.

    Args:
        inputs: images.
        upsampling: of coarser branches where they are added to finer ones: "nearest" is that of the published
            checkpoints, "bilinear" that of the released code for dense prediction, which starts from them.
    """

    input_kind = "image"
    serves = ("dense", "pooled")
    last_holds_all: ClassVar[bool] = True
    """All levels are made of the state after the last stage."""

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "w18_small", "w18_small_v2", "w18", "w30", "w32", "w40", "w44", "w48", "w64"]
        | None = "w18",
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        norm: Literal["batch", "frozen", "group"] = "batch",
        upsampling: Upsampling = "nearest",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        trunk = make_hrnet(size, pretrained, upsampling)
        widths = trunk.shape.widths
        super().__init__(inputs, FeatureSpec(widths, STRIDES, sum(widths)), mean, std, multiple=32)
        self.trunk = trunk
        self.upsampling = upsampling
        self.made: tuple[int, ...] = tuple(range(len(widths)))  # branches that the last exchange makes
        set_norm(self, norm, pretrained)
        self.finish(frozen, gradient_checkpointing)

    def keep_levels(self, indices: Sequence[int]) -> None:
        """Where no pooled vector needs them, the last sums of the other branches are dropped."""
        super().keep_levels(indices)
        if "pooled" not in self.wanted:
            self.made = tuple(sorted(indices))
            last = self.trunk.stage4[-1]
            assert isinstance(last, Exchange)
            last.keep(self.made)

    def blocks(self) -> list[nn.Module]:
        return [block for index in range(4) for block in self.stage_blocks(index)]

    def trunk_groups(self) -> list[list[nn.Module]]:
        trunk = self.trunk
        stem = [trunk.conv1, trunk.bn1, trunk.conv2, trunk.bn2]
        return [stem, [trunk.layer1], *([transition, exchanges] for transition, exchanges in trunk.parts())]

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        return self.trunk(x_BCHW)

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        made = dict(zip(self.made, levels, strict=True))
        return [made.get(i, levels[0]) for i in range(len(STRIDES))]  # nobody reads what stands in: `kept` skips it

    def pool(self, levels: list[Tensor]) -> Tensor:
        """(B, ΣC): the mean of every branch."""
        return torch.cat([level.mean((-2, -1)) for level in levels], dim=1)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Of stage 1 its output's, then those of two, three and four branches together."""
        return (*self.inner_channels[:-1], sum(self.trunk.shape.widths[i] for i in self.made))

    @property
    def inner_channels(self) -> tuple[int, ...]:
        """Before the last exchange there are all branches."""
        widths = self.trunk.shape.widths
        last = widths if len(self.trunk.stage4) > 1 else [widths[i] for i in self.made]
        return (4 * self.trunk.shape.first[1], sum(widths[:2]), sum(widths[:3]), sum(last))

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """The finest branch's at every stage."""
        return (*([STRIDES[0]] * 3), STRIDES[self.made[0]])

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        return self.trunk.stem(x_BCHW)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        blocks = self.stage_blocks(index)
        if index == 0:
            return through(blocks, x)
        transition, _ = self.trunk.parts()[index - 1]
        branches = range(index)
        before = [x] if index == 1 else apart(x, [self.trunk.shape.widths[i] for i in branches], branches)
        inner, outer = through(blocks, transition(before))  # type: ignore[type-var]
        made = self.made if index == len(STRIDES) - 1 else range(index + 1)
        state = side_by_side(outer, made, made[0])  # type: ignore[arg-type]
        return (side_by_side(inner, range(index + 1), made[0]) if len(blocks) > 1 else state), state  # type: ignore[arg-type]

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.trunk.layer1 if index == 0 else self.trunk.parts()[index - 1][1])

    def stage_levels(self, states: list[Tensor], run: StageRun) -> list[Tensor]:
        return apart(states[-1], [self.trunk.shape.widths[i] for i in self.made], self.made)


def side_by_side(maps: Sequence[Tensor], branches: Sequence[int], at: int) -> Tensor:
    """Branches at the resolution of branch `at`, concatenated: coarser ones repeated, finer ones averaged."""
    parts = []
    for branch, x_BCHW in zip(branches, maps, strict=True):
        if branch > at:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2 ** (branch - at), mode="nearest")
        elif branch < at:
            x_BCHW = F.avg_pool2d(x_BCHW, 2 ** (at - branch))
        parts.append(x_BCHW)
    return torch.cat(parts, dim=1)


def apart(x_BCHW: Tensor, widths: Sequence[int], branches: Sequence[int]) -> list[Tensor]:
    """What `side_by_side` joined at its finest branch; each cell is the mean of those that stand for it."""
    parts = x_BCHW.split(list(widths), dim=1)
    factors = [2 ** (branch - branches[0]) for branch in branches]
    return [part if f == 1 else F.avg_pool2d(part, f) for part, f in zip(parts, factors, strict=True)]


def make_hrnet(size: str | None, pretrained: str | None, upsampling: Upsampling) -> HRNetTrunk:
    """The network, from scratch or from a checkpoint with timm's names.

    Raises:
        UserError: there is no such checkpoint, or it does not fit.
    """
    if pretrained is None:
        if size is None:
            raise UserError(
                "backbone.size=null takes the size of a checkpoint, and backbone.pretrained is null",
                suggest("", PRESETS),
            )
        return HRNetTrunk(size, upsampling)
    architecture = read_architecture(local_config(pretrained), pretrained, "hrnet")
    found = architecture.removeprefix("hrnet_").removesuffix("_ssld")  # distilled weights of the same network
    if found not in PRESETS:
        raise UserError(
            f"backbone.pretrained={pretrained} is a checkpoint of '{architecture}', which is no size of this backbone",
            suggest(found, PRESETS),
        )
    if size is not None and found != size:
        raise UserError(
            f"backbone.pretrained={pretrained} is not of backbone.size={size}: it is of '{architecture}'",
            f"set backbone.size={found}",
        )
    trunk = HRNetTrunk(found, upsampling)
    load_weights(trunk, local_checkpoint(pretrained), pretrained, HEAD)
    return trunk
