"""ResNets from timm's checkpoints, such as `timm/resnet50.tv_in1k`: the weights that torchvision publishes.

The tensors get the names that transformers has for them; timm is not needed. Both put a stage's stride into its first
3×3 convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoModel, PreTrainedModel, ResNetConfig

from runner.backbones.hub import local_checkpoint
from runner.backbones.pretrained import Presets, check_size
from runner.backbones.timm_checkpoints import fill, match_architecture, read_renamed
from runner.errors import UserError

ARCHITECTURE = re.compile(r"resnet(18|34|50|101|152)")
HEAD = [r"^fc\."]
"""The classifier, which is left out."""
PARTS = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
STEM = "embedder.embedder"


def make_timm_trunk(directory: Path, pretrained: str, presets: Presets, size: str | int | None) -> PreTrainedModel:
    """A ResNetModel with the weights of a checkpoint of timm's.

    Args:
        directory: with its config.json.
        pretrained: what the configuration calls it, for messages.
        presets, size: what the configuration says of it, see `runner.backbones.pretrained.make_trunk`.

    Raises:
        UserError: it is another kind of network, or does not hold what it should.
    """
    match_architecture(directory, pretrained, ARCHITECTURE, "a plain ResNet (resnet50, …)")
    state = read_renamed(local_checkpoint(pretrained), pretrained, renamed, HEAD, "a plain ResNet")
    config = _config(state, pretrained)
    check_size(config, presets, size, pretrained)
    trunk = AutoModel.from_config(config)
    fill(trunk, state, pretrained, HEAD)
    return trunk


def renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor by the name of transformers; nothing for one that a plain ResNet does not have."""
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return {f"{STEM}.{PARTS[stem[1]]}.{stem[2]}": tensor}
    if inside := re.fullmatch(r"layer(\d+)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        stage, layer, part, number, kind = inside.groups()
        place = f"encoder.stages.{int(stage) - 1}.layers.{layer}.layer.{int(number) - 1}"
        return {f"{place}.{PARTS[part]}.{kind}": tensor}
    if beside := re.fullmatch(r"layer(\d+)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, layer, part, kind = beside.groups()
        return {f"encoder.stages.{int(stage) - 1}.layers.{layer}.shortcut.{PARTS[part]}.{kind}": tensor}
    return {}


def _config(state: Mapping[str, Tensor], pretrained: str) -> ResNetConfig:
    """The configuration that fits the tensors."""
    blocks = {tuple(map(int, re.findall(r"\d+", name)[:2])) for name in state if name.startswith("encoder.")}
    stages = sorted({stage for stage, _ in blocks})
    first = "encoder.stages.0.layers.0.layer."
    try:
        deepest = 2 if f"{first}2.convolution.weight" in state else 1
        return ResNetConfig(
            layer_type="bottleneck" if deepest == 2 else "basic",
            embedding_size=state[f"{STEM}.convolution.weight"].shape[0],
            hidden_sizes=[
                state[f"encoder.stages.{s}.layers.0.layer.{deepest}.convolution.weight"].shape[0] for s in stages
            ],
            depths=[sum(stage == s for stage, _ in blocks) for s in stages],
        )
    except KeyError as error:
        raise UserError(f"backbone.pretrained={pretrained} lacks tensors of a ResNet: {error}") from error
