"""A trained run's model with the weights of a checkpoint, as evaluation and prediction use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from runner.config.schema import TrainerConfig
from runner.training.assemble import Parts, assemble
from runner.training.checkpoints import check_inputs, load_weights


def load_trained(
    config: Mapping[str, Any],
    checkpoint: Path,
    device: torch.device,
    data_root: str | None = None,
    kept: Mapping[str, Any] | None = None,
    must_have_data: bool = True,
) -> tuple[Parts, nn.Module]:
    """The parts of a run, and what is evaluated: their model, its average, or a merge's module.

    Args:
        config: the run's frozen configuration. checkpoint: one of its folders.
        data_root, kept, must_have_data: see `assemble`.

    Raises:
        UserError: the data is not there or has changed, or the weights do not fit.
    """
    # The weights come from the checkpoint: the published ones need not be there any more, only their tokenizer.
    merged = bool((config.get("merge") or {}).get("_target_"))
    plain = {**config, "adapter": {"_target_": None}} if merged else config  # experts' adapters are folded in
    parts = assemble(plain, data_root, must_have_data, kept)
    check_inputs(checkpoint, parts.inputs)
    model = parts.model.to(device)
    weights = checkpoint / "model.safetensors"
    if merged:
        from runner.merging.launched import empty_result

        model = empty_result(config, model, checkpoint)
    elif TrainerConfig(**config["trainer"]).ema:
        model, weights = AveragedModel(model, use_buffers=True), checkpoint / "ema.safetensors"
    load_weights(model, weights)
    return parts, model
