"""A trained run as a folder that other programs read: the backbone as transformers has it, the rest beside it.

DIR/README.md                       the model card
DIR/config.json, model.safetensors  the backbone, for `AutoModel.from_pretrained(DIR)` (HRNet: for timm); with several
backbones each in a folder of its own, DIR/backbones/NAME
DIR/tokenizer.json … or preprocessor_config.json
DIR/runner/config.yaml              the frozen configuration
DIR/runner/heads.safetensors        the heads, under the names they have in the run's model
DIR/runner/rest.safetensors         what is neither head nor transformers model: necks, adapters, cross-task units
DIR/runner/export.json              how the parts fit together, and how well the backbone was found to load
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.exporting.reading import Exported


def load(folder: str | Path, plugins: tuple[str, ...] = ()) -> Exported:
    """The whole model of an exported folder, heads included, in evaluation mode.

    Args:
        folder: what `runner export` wrote.
        plugins: packages of your own that the model's classes come from; a folder does not get to name them.

    Raises:
        UserError: it is no such folder, or its files do not fit one another.
    """
    from runner.exporting.reading import load_folder

    return load_folder(Path(folder), plugins)
