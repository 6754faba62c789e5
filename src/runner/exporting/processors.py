"""What turns raw inputs into those of the backbone, in the files that transformers' auto classes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from runner.backbones.image import ImageBackbone
from runner.exporting.trunks import find_backbones
from runner.files import write_json
from runner.mixtures.base import Mixture
from runner.specs import InputSpec

BILINEAR = 2
"""PIL's number."""


def write_processor(mixture: Mixture, inputs: InputSpec, model: nn.Module, folders: list[Path]) -> str:
    """Write the tokenizer or the image processor into each folder; returns a sentence for the model card."""
    if inputs.kind == "text":
        tokenizer: Any = getattr(mixture, "encoder", None)
        if tokenizer is None:
            return "The mixture's own tokenisation is not among these files; see the mixture in runner/config.yaml."
        for folder in folders:
            tokenizer.save(folder)
        return f"Texts are cut after {tokenizer.max_length} tokens and padded on the right."
    if inputs.kind == "image":
        backbone = next(iter(find_backbones(model).values()))
        if not isinstance(backbone, ImageBackbone):
            return "The backbone prepares images itself; see runner/config.yaml."
        settings = image_settings(backbone, inputs)
        for folder in folders:
            write_json(folder / "preprocessor_config.json", settings)
        words = "Pixels are scaled to [0, 1] and normalised with the mean and deviation in preprocessor_config.json"
        if inputs.size:
            words += f"; training images are {inputs.size[0]} × {inputs.size[1]}"
        if backbone.multiple > 1:
            words += f"; sides are padded with the mean colour to multiples of {backbone.multiple}"
        return words + "."
    columns = f"{inputs.num_numeric} numeric and {len(inputs.cardinalities)} categorical columns"
    return f"Rows have {columns}, standardised and numbered by the mixture; see runner/config.yaml."


def image_settings(backbone: ImageBackbone, inputs: InputSpec) -> dict[str, Any]:
    """preprocessor_config.json: what the mixture and the backbone do to an image before the trunk sees it."""
    size = {"height": inputs.size[0], "width": inputs.size[1]} if inputs.size else {}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": bool(size),
        **({"size": size} if size else {}),
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(v, 6) for v in backbone.mean.flatten().tolist()],
        "image_std": [round(v, 6) for v in backbone.std.flatten().tolist()],
    }
