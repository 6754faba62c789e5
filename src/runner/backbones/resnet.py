"""ResNet (He et al. 2016, arXiv 1512.03385) with options for dense prediction and for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.backbones.hub import local_config
from runner.backbones.image import IMAGENET_MEAN, IMAGENET_STD, ImageBackbone
from runner.backbones.pretrained import make_trunk
from runner.backbones.staged import StageRun, through
from runner.backbones.timm_checkpoints import is_timm
from runner.backbones.timm_resnet import make_timm_trunk
from runner.config.kinds import NonNegativeInt
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec

_BOTTLENECK = {"layer_type": "bottleneck", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048]}
_BASIC = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512]}
PRESETS = {
    "tiny": {"layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "small": {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]},
    18: {**_BASIC, "depths": [2, 2, 2, 2]},
    34: {**_BASIC, "depths": [3, 4, 6, 3]},
    50: {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    101: {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
    152: {**_BOTTLENECK, "depths": [3, 8, 36, 3]},
}


class ResNet(ImageBackbone):
    """Residual convolutional network; pyramid of its four stages, pooled by the mean of the last.

    Layer groups: stem, then one per stage (5).
    """

    input_kind = "image"
    serves = ("dense", "pooled")

    def __init__(
        self,
        inputs: InputSpec,
        *,
        size: Literal["tiny", "small", 18, 34, 50, 101, 152] | None = 50,
        pretrained: str | None = None,
        frozen: bool | NonNegativeInt = False,
        gradient_checkpointing: bool = False,
        norm: Literal["batch", "frozen", "group"] = "batch",
        output_stride: Literal[8, 16, 32] = 32,
        stem_pool: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if pretrained is not None and is_timm(directory := local_config(pretrained), pretrained):
            trunk = make_timm_trunk(directory, pretrained, PRESETS, size)
        else:
            trunk = make_trunk("resnet", PRESETS, size, pretrained, settings={}, ignore=[r"^classifier\."])
        channels = tuple(trunk.config.hidden_sizes)
        strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        if not stem_pool:
            strides = [stride // 2 for stride in strides]
        super().__init__(inputs, FeatureSpec(channels, tuple(strides), channels[-1]), mean, std)
        self.trunk = trunk
        dilate(trunk.encoder.stages, output_stride)
        if not stem_pool:
            trunk.embedder.pooler = nn.Identity()
        set_norm(self, norm, pretrained)
        self.finish(frozen, gradient_checkpointing)

    def blocks(self) -> list[nn.Module]:
        return [layer for stage in self.trunk.encoder.stages for layer in stage.layers]

    def trunk_groups(self) -> list[list[nn.Module]]:
        return [[self.trunk.embedder], *([stage] for stage in self.trunk.encoder.stages)]

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        return list(self.trunk(x_BCHW, output_hidden_states=True).hidden_states[1:])

    def stem(self, x_BCHW: Tensor, run: StageRun) -> Tensor:
        return self.trunk.embedder(x_BCHW)

    def stage(self, index: int, x: Tensor, run: StageRun) -> tuple[Tensor, Tensor]:
        return through(self.stage_blocks(index), x)

    def stage_blocks(self, index: int) -> list[nn.Module]:
        return list(self.trunk.encoder.stages[index].layers)


def set_norm(backbone: Backbone, norm: Literal["batch", "frozen", "group"], pretrained: str | None) -> None:
    """Keep the trunk's BatchNorm, keep it as the checkpoint has it, or put GroupNorm in its place.

    Raises:
        UserError: that does not go with starting from a checkpoint, or without one.
    """
    if norm == "batch":
        return
    if norm == "frozen" and pretrained is None:
        raise UserError(
            "backbone.norm=frozen keeps a checkpoint's BatchNorm statistics, and backbone.pretrained is null",
            "set backbone.pretrained, or backbone.norm=group for small batches",
        )
    if norm == "group" and pretrained is not None:
        raise UserError(
            "backbone.norm=group replaces BatchNorm, which a checkpoint's weights were trained with",
            "set backbone.norm=frozen for small batches, or backbone.pretrained=null",
        )
    if norm == "frozen":
        backbone.fix(*(m for m in backbone.trunk.modules() if isinstance(m, nn.BatchNorm2d)))
        return
    for parent in list(backbone.trunk.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, group_norm(child.num_features))


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, fewer where the channels do not allow it (Wu and He 2018, arXiv 1803.08494)."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels // g > 1 or g == 1))
    return nn.GroupNorm(groups, channels)


def dilate(stages: nn.ModuleList, output_stride: int) -> None:
    """Replace the stride of the last stages by dilation, as in DeepLab (Chen et al. 2017, arXiv 1706.05587).

    A stage that loses its stride runs its first 3×3 convolution at the dilation before it and the others at twice
    that, the convention of torchvision's `replace_stride_with_dilation`, which fits classification checkpoints.
    """
    stride, dilation = 4, 1
    for stage in list(stages)[1:]:
        before = dilation
        if stride >= output_stride:
            dilation *= 2
            for layer in stage.layers:
                for module in layer.modules():
                    if isinstance(module, nn.Conv2d):
                        module.stride = (1, 1)
        else:
            stride *= 2
        convolutions = [m for layer in stage.layers for m in layer.modules() if isinstance(m, nn.Conv2d)]
        spatial = [m for m in convolutions if m.kernel_size == (3, 3)]
        for i, module in enumerate(spatial):
            rate = before if i == 0 else dilation
            module.dilation, module.padding = (rate, rate), (rate, rate)
