"""Checkpoints with timm's names: a folder with config.json, which names the architecture, and weights.

They are read and written here without timm. The published ones lie on the hub as `timm/<architecture>.<tag>`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from runner.errors import Problem, UserError, first_line
from runner.files import write_json

log = logging.getLogger(__name__)


def read_about(directory: Path, pretrained: str = "") -> dict[str, Any]:
    """What config.json says.

    Raises:
        UserError: it cannot be read.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        shown = pretrained or directory
        raise UserError(f"backbone.pretrained={shown}: config.json cannot be read: {error}") from error
    return config if isinstance(config, dict) else {}


def is_timm(directory: Path, pretrained: str) -> bool:
    """Whether a checkpoint's config.json is one of timm's."""
    about = read_about(directory, pretrained)
    return "model_type" not in about and isinstance(about.get("architecture"), str)


def match_architecture(directory: Path, pretrained: str, pattern: re.Pattern[str], plain: str) -> re.Match[str]:
    """What the architecture that config.json names matches.

    Args:
        pattern: of the architectures that are read. plain: says in words what they are.

    Raises:
        UserError: it is another one.
    """
    architecture = str(read_about(directory, pretrained).get("architecture"))
    found = pattern.fullmatch(architecture)
    if found is None:
        raise UserError(
            f"backbone.pretrained={pretrained} is a checkpoint of '{architecture}', this backbone is {plain}",
            "choose the backbone of that family",
            "runner ls backbone",
        )
    return found


def read_renamed(
    directory: Path,
    pretrained: str,
    rename: Callable[[str, Tensor], dict[str, Tensor]],
    head: Sequence[str],
    plain: str,
) -> dict[str, Tensor]:
    """A checkpoint's tensors under other names; those of the classifier keep theirs.

    Args:
        rename: what a tensor becomes; nothing for one that a plain network of the family does not have.
        head: patterns of the classifier's tensors.
        plain: says in words what a plain network is.

    Raises:
        UserError: files are damaged, or a tensor means nothing: the network would compute otherwise.
    """
    state: dict[str, Tensor] = {}
    strange = []
    for name, tensor in read_tensors(directory, pretrained).items():
        beside = any(re.search(pattern, name) for pattern in head)
        found = {name: tensor} if beside else rename(name, tensor)
        state |= found
        strange += [] if found else [name]
    if strange:
        raise UserError(
            f"backbone.pretrained={pretrained} computes otherwise than {plain}: it holds {_some(sorted(strange))}",
            "variants (other norms, stems, poolings, distilled tokens) are not read",
        )
    return state


def read_architecture(directory: Path, pretrained: str, family: str) -> str:
    """The architecture that config.json names, such as "hrnet_w48".

    Raises:
        UserError: config.json cannot be read, or names none of this family.
    """
    config = read_about(directory, pretrained)
    found = config.get("architecture") or config.get("model_type")
    if not isinstance(config.get("architecture"), str) or not found.startswith(f"{family}_"):
        raise UserError(
            f"backbone.pretrained={pretrained} is a checkpoint of '{found}', this backbone is '{family}'",
            f"choose the backbone of that family, or one of timm's: its config.json names an architecture {family}_…",
            "runner ls backbone",
        )
    return found


def load_weights(module: nn.Module, directory: Path, pretrained: str, ignore: Sequence[str]) -> None:
    """Load, and account for every tensor: all of the module's must come from the checkpoint, with their shapes.

    Args:
        module: takes the weights, in its own precision.
        directory: of the checkpoint.
        pretrained: what the configuration calls it, for messages.
        ignore: patterns of tensors that are left out on purpose: the classification head.

    Raises:
        UserError: files are damaged, tensors missing or of another shape.
    """
    fill(module, read_tensors(directory, pretrained), pretrained, ignore)


def read_tensors(directory: Path, pretrained: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in single precision.

    Raises:
        UserError: files are damaged.
    """
    try:
        return _read(directory)
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, safetensors.SafetensorError) as error:
        first = first_line(error, "no message")
        raise UserError(
            f"backbone.pretrained={pretrained} cannot be loaded: {type(error).__name__}: {first}"
        ) from error


def fill(module: nn.Module, found: Mapping[str, Tensor], pretrained: str, ignore: Sequence[str]) -> None:
    """Give a module these tensors, and account for every one of them; see `load_weights`.

    Raises:
        UserError: tensors are missing or of another shape.
    """
    own = module.state_dict()
    problems = []
    if wrong := sorted(k for k in own.keys() & found.keys() if own[k].shape != found[k].shape):
        have, want = tuple(found[wrong[0]].shape), tuple(own[wrong[0]].shape)
        problems.append(
            Problem(
                f"backbone.pretrained={pretrained}: {len(wrong)} tensors have another shape than its config.json "
                f"says, first {wrong[0]}: {have} instead of {want}"
            )
        )
    # Counters of batches, which training does not read, were left out of checkpoints in earlier years.
    if missing := sorted(k for k in own.keys() - found.keys() if not k.endswith(".num_batches_tracked")):
        problems.append(
            Problem(
                f"backbone.pretrained={pretrained} lacks {len(missing)} of the trunk's tensors: {_some(missing)}",
                "the checkpoint is incomplete or belongs to another kind of model",
            )
        )
    if problems:
        raise UserError(problems)
    unused = sorted(found.keys() - own.keys())
    surprising = [key for key in unused if not any(re.search(pattern, key) for pattern in ignore)]
    module.load_state_dict({name: found.get(name, tensor) for name, tensor in own.items()})
    log.info("backbone: %d tensors from %s; left out: %s", len(own), pretrained, _some(unused) or "none")
    if surprising:
        log.warning("backbone: %s also holds tensors this backbone has no place for: %s", pretrained, _some(surprising))


def save_folder(folder: Path, architecture: str, state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors, as `timm.create_model("local-dir:FOLDER", pretrained=True)` reads them.

    Args:
        folder: made where it is not there.
        architecture: timm's name.
        state: the weights by timm's names.
        arguments: of timm's model beside those of the architecture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    about = {"architecture": architecture, "num_classes": 0, "model_args": dict(arguments), "pretrained_cfg": {}}
    write_json(folder / "config.json", about)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder that `save_folder` wrote."""
    return safetensors.torch.load_file(folder / "model.safetensors")


def _read(directory: Path) -> dict[str, Tensor]:
    """All tensors, in single precision; of several files those that an index names, or else model.safetensors."""
    names = sorted({n for path in directory.glob("*.safetensors.index.json") for n in _shards(path)})
    if not names:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
        names = ["model.safetensors"] if "model.safetensors" in names else names
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= safetensors.torch.load_file(directory / name)
    for path in [] if names else sorted(directory.glob("pytorch_model*.bin")):
        tensors |= torch.load(path, map_location="cpu", weights_only=True)
    return {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
