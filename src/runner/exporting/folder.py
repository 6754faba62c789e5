"""From a run's checkpoint to an exported folder."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from runner.config.build import build
from runner.config.schema import TrainerConfig
from runner.errors import RunFailed, UserError
from runner.exporting.card import write_card
from runner.exporting.processors import write_processor
from runner.exporting.reading import WHERE
from runner.exporting.trunks import Trunk, write_trunks
from runner.files import read_json, write_json
from runner.launching.rundir import RunDirectory
from runner.training.assemble import Parts, assemble
from runner.training.checkpoints import Checkpoints, check_inputs, load_weights
from runner.training.kept import kept_inputs

PRIVATE = ("data_root", "output_dir", "run_dir")
"""Keys of the configuration that name places on this machine."""


def export(run: RunDirectory, to: Path, checkpoint: str, licence: str | None, data_root: str | None) -> list[Trunk]:
    """Write the folder; it appears whole or not at all.

    Args:
        run: a trained run.
        to: must not exist, or be empty.
        checkpoint: best, latest or a step.
        licence: an SPDX identifier for the model card, or None.
        data_root: where the data lies now; needed where the model's inputs depend on it (texts, tables) and the run
            is of before it kept them.

    Returns:
        What became of every backbone.

    Raises:
        UserError: no such checkpoint, `to` is taken, or the data that decides the model's inputs is not there.
        RunFailed: the folder cannot be written.
    """
    config = run.config()
    found = Checkpoints(run.path / "checkpoints").find(checkpoint)
    parts, averaged = plain_model(config, found, data_root, kept_inputs(run.path))
    parts.model.eval()
    to = to.absolute()
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        trunks = _fill(temporary, run, parts, found.name, averaged, licence)
        _readable(temporary)
        os.rename(temporary, to)  # refuses a folder that has become non-empty meanwhile
    except OSError as error:
        raise RunFailed(f"'{to}' cannot be written: {error}", "choose another place with --to DIR") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return trunks


def plain_model(
    config: dict[str, Any], checkpoint: Path, data_root: str | None, kept: Mapping[str, Any] | None = None
) -> tuple[Parts, bool]:
    """A run's model with a checkpoint's weights, adapters folded in; and whether these are averaged weights.

    Args:
        kept: the run's inputs.json, in place of its data.

    Raises:
        UserError: the result of a merge that is not one set of weights of the experts' architecture.
    """
    merged = bool((config.get("merge") or {}).get("_target_"))
    if merged and read_json(checkpoint / "state.json").get("merged") is not None:
        kind = config["merge"]["_target_"].rpartition(".")[2]
        raise UserError(
            f"the result of this merge is a module of its own ({kind}), and a Hugging Face folder holds one set of "
            "weights",
            "export a merge that gives one set of weights, such as merge=task_arithmetic",
            "runner ls merge",
        )
    without = {**config, "adapter": {"_target_": None}}
    adapter = None if merged else build(config.get("adapter"), where="adapter")  # a merge has folded it already
    parts = assemble(without if merged else config, data_root, must_have_data=False, kept=kept)
    check_inputs(checkpoint, parts.inputs)
    averaged = bool(TrainerConfig(**config["trainer"]).ema) and not merged
    if merged:
        load_weights(parts.model, checkpoint / "model.safetensors")
    elif averaged:
        average = AveragedModel(parts.model, use_buffers=True)
        load_weights(average, checkpoint / "ema.safetensors")
        parts.model = average.module
    else:
        load_weights(parts.model, checkpoint / "model.safetensors")
    if adapter is not None:
        state = adapter.fold(parts.model)
        parts = assemble(without, data_root, must_have_data=False, kept=kept)
        parts.model.load_state_dict(state)
    return parts, averaged


def _fill(folder: Path, run: RunDirectory, parts: Parts, step: str, averaged: bool, licence: str | None) -> list[Trunk]:
    model, own = parts.model, folder / WHERE
    own.mkdir()
    trunks = write_trunks(model, parts.inputs, folder)
    held = {t.name for t in trunks if t.folder is not None}
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    heads = {name: tensor for name, tensor in state.items() if name.startswith("heads.")}
    rest = {
        name: tensor
        for name, tensor in state.items()
        if name not in heads and not any(name.startswith(f"{trunk}.trunk.") for trunk in held)
    }
    _save(heads, own / "heads.safetensors")
    if rest:
        _save(rest, own / "rest.safetensors")
    config = {key: value for key, value in parts.config.items() if key not in PRIVATE}
    (own / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    places = [folder / t.folder for t in trunks if t.folder is not None] or [folder]
    reading = write_processor(parts.mixture, parts.inputs, model, places)
    about: dict[str, Any] = {
        "schema": 1,
        "name": run.info()["name"],
        "signature": run.info()["signature"],
        "checkpoint": step,
        "averaged": averaged,
        "folded": parts.config["adapter"] != run.config()["adapter"],
        "inputs": asdict(parts.inputs),
        "backbones": [trunk.as_json() for trunk in trunks],
    }
    write_json(own / "export.json", about)
    write_card(folder, run, config, about, reading, licence)
    return trunks


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def _readable(folder: Path) -> None:
    """The library writes safetensors that only their owner can read; an export is made to be passed on."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)
