"""The published sizes have the published numbers of parameters, in millions, counted without memory.

Figures are those of the papers or model cards less the classification head (and BERT's pooler): for instance ResNet-50
25.56 M with 2.05 M of classifier, Swin-T 28.29 M with 0.77 M, ViT-B 86.57 M with 0.77 M.
"""

from __future__ import annotations

import pytest
import torch

from runner.specs import InputSpec
from tests.backbones.samples import backbone, option

IMAGES = {
    "resnet": {18: 11.18, 34: 21.28, 50: 23.51, 101: 42.50, 152: 58.14},
    "convnext": {"convnext_tiny": 27.82, "small": 49.45, "base": 87.57, "large": 196.23, "xlarge": 348.15},
    "swin": {"swin_tiny": 27.52, "small": 48.84, "base": 86.74, "large": 195.0},
    "vit": {"mini": 0.82, "vit_tiny": 5.52, "small": 21.67, "base": 85.80, "large": 303.30},
    "clip": {"b32": 87.85, "b16": 86.19, "l14": 303.97},
    "dinov2": {"small": 22.06, "base": 86.58, "large": 304.37, "giant": 1136.48},
    "pvt_v2": {"b0": 3.41, "b1": 13.50, "b2": 24.85, "b3": 44.73, "b4": 62.04, "b5": 81.44},
    "segformer": {"b0": 3.32, "b1": 13.15, "b2": 24.20, "b3": 44.07, "b4": 60.84, "b5": 81.44},
}
TEXTS = {  # vocabulary, padding id, sizes
    "bert": (30522, 0, {"mini": 11.10, "small": 28.50, "medium": 41.11, "base": 108.89, "large": 334.09}),
    "roberta": (50265, 1, {"base": 124.06, "large": 354.31}),
    "distilbert": (30522, 0, {"base": 66.36}),
    "deberta_v3": (128100, 0, {"xsmall": 70.68, "small": 141.30, "base": 183.83, "large": 434.01}),
    "modernbert": (50368, 0, {"base": 149.01, "large": 394.78}),
    "t5": (32128, 0, {"small": 35.33, "base": 109.63, "large": 334.94, "v1.1-base": 109.63, "v1.1-large": 341.23}),
    "gpt2": (50257, 0, {"small": 124.44, "medium": 354.82, "large": 774.03}),
    "llama": (49152, 0, {"135m": 134.52, "360m": 361.82}),
}


def millions(name: str, size: str | int, inputs: InputSpec) -> float:
    with torch.device("meta"):
        net = backbone(option("backbone", name), inputs, size=size)
    return sum(p.numel() for p in net.trunk.parameters()) / 1e6


@pytest.mark.parametrize(("name", "size"), [(n, s) for n, sizes in IMAGES.items() for s in sizes])
def test_images(name, size):
    assert millions(name, size, InputSpec("image", size=(224, 224))) == pytest.approx(IMAGES[name][size], abs=0.006)


@pytest.mark.parametrize(("name", "size"), [(n, s) for n, (_, _, sizes) in TEXTS.items() for s in sizes])
def test_texts(name, size):
    vocabulary, pad, sizes = TEXTS[name]
    inputs = InputSpec("text", vocab_size=vocabulary, pad_token_id=pad, max_length=128)
    assert millions(name, size, inputs) == pytest.approx(sizes[size], abs=0.006)
