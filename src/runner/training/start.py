"""Where training starts: weights of another run or of a folder, fitted heads, the tangent space."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.backbones.tangent import Tangent
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.specs import InputSpec
from runner.training.assemble import Parts
from runner.training.checkpoints import Checkpoints, check_inputs
from runner.training.probing import fit_heads

log = logging.getLogger(__name__)


def start(parts: Parts, run: RunDirectory) -> None:
    """Bring a new run's model to where its training starts: the weights of `init`, and fitted heads.

    A run with a checkpoint gets all of it from there, but the origin of a tangent space is needed in any case.

    Raises:
        UserError: the weights are not there or do not fit; heads that cannot be fitted.
    """
    config = parts.config
    known = start_from(parts.model, config, run.info().get("needs", []), parts.inputs)
    if config["finetune"]["heads"] == "train" or Checkpoints(run.path / "checkpoints").newest() is not None:
        return
    trainer = config["trainer"]
    fit_heads(
        parts.model,
        {name: task for name, task in parts.tasks.items() if name not in known},
        parts.mixture.datasets("train"),
        parts.inputs,
        decay=config["finetune"]["decay"],
        batch_size=trainer["eval_batch_size"] or trainer["batch_size"],
        device=next(parts.model.parameters()).device,
    )


def start_from(
    model: nn.Module, config: Mapping[str, Any], needs: Iterable[Mapping[str, Any]], inputs: InputSpec
) -> set[str]:
    """Load what `init` names into every backbone of a model; nothing where `init` is null.

    Heads of tasks that the start has under the same name and with the same shapes are taken along; returns their tasks.

    Args:
        model: an architecture, as `assemble` gave it.
        config: the run's frozen configuration.
        needs: `needs` of its run.json, with the path of the base run.
        inputs: what the mixture feeds; the start must have been trained on the same.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    init = config.get("init")
    if init is None:
        return set()
    if isinstance(init, str):
        path = Path(init)
    else:
        paths = [need["path"] for need in needs if need["role"] == "base" and need["path"]]
        if not paths:
            raise UserError(f"the base run of init.experiment={init['experiment']} is not there", "start the run again")
        path = Path(paths[0])
    file = weights_file(path)
    check_inputs(file[0].parent, inputs)
    for backbone in model.all_backbones():  # type: ignore[operator]
        load_backbone(backbone, file)
    known = load_heads(model.heads, file)  # type: ignore[arg-type]
    log.info("backbone: started from %s; heads: %s", file, ", ".join(sorted(known)) or "none")
    return known


@torch.no_grad()
def load_heads(heads: Mapping[str, nn.Module], files: list[Path]) -> set[str]:
    """Give heads the weights of heads of the same name and shape; returns the tasks whose head was found."""
    where, known = _where(files), set()
    for task, head in heads.items():
        state = head.state_dict()
        prefix = next(
            (p for p in (f"heads.{task}.", f"module.heads.{task}.") if state and p + next(iter(state)) in where), None
        )
        if prefix is None or not all(prefix + name in where for name in state):
            continue
        found = {name: _read(where[prefix + name], prefix + name) for name in state}
        if all(found[name].shape == state[name].shape for name in state):
            head.load_state_dict(found)
            known.add(task)
    return known


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def weights_file(path: Path) -> list[Path]:
    """The safetensors files of a run (its best checkpoint), of a checkpoint's folder, or the file itself.

    Raises:
        UserError: there are none.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if (path / "run.json").is_file():
        path = Checkpoints(path / "checkpoints").find("best")
    averaged = path / "ema.safetensors"
    if averaged.is_file():  # what the run itself was judged by
        return [averaged]
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        raise UserError(f"init: there are no safetensors weights in {path}", "a run, a folder or a file of safetensors")
    return files


def load_backbone(backbone: Backbone, files: list[Path]) -> None:
    """Give a backbone the weights of the same backbone in files, whatever lies before its names.

    Names are those of a run's model ("backbone.trunk…"), of a backbone ("trunk…") or of a trunk alone; an adapter's own
    tensors are left as they are, and the origin of a tangent space follows.

    Raises:
        UserError: tensors are missing, or have another shape.
    """
    tangent = backbone if isinstance(backbone, Tangent) else None
    module = tangent.point if tangent is not None else backbone
    targets = {plain: tensor for name, tensor in module.state_dict().items() if (plain := plain_name(name))}
    where = _where(files)
    prefix = _prefix(list(targets), where)
    missing = [name for name in targets if prefix(name) not in where]
    if missing:
        raise UserError(
            f"init: {files[0]} does not hold this backbone: {len(missing)} of its {len(targets)} tensors are missing, "
            f"first {missing[0]}",
            f"the file has {', '.join(list(where)[:3])}, …: start from a run with the same backbone",
        )
    wrong = []
    for name, target in targets.items():
        found = _read(where[prefix(name)], prefix(name))
        if found.shape != target.shape:
            wrong.append(f"{name} {tuple(found.shape)} instead of {tuple(target.shape)}")
        else:
            target.copy_(found)
    if wrong:
        raise UserError(f"init: {files[0]} is of another shape: {'; '.join(wrong[:4])}")
    if tangent is not None:
        tangent.rebase()


def plain_name(name: str) -> str | None:
    """A tensor's name without an adapter; None for those that belong to one, or to the narrow widths of slimmable."""
    return None if ".lora_" in name or ".slim_" in name else name.replace(".base_layer.", ".")


def _where(files: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _prefix(names: list[str], there: Mapping[str, Any]) -> Any:
    """How a backbone's tensor is called in a file: the way that finds most of them."""
    singles = sorted({"backbones." + key.split(".")[1] + "." for key in there if key.startswith("backbones.")})
    ways = [
        lambda name, before=before: before + name
        for before in ("backbone.", "backbone.point.", "module.backbone.", "", *singles)
    ]
    ways.append(lambda name: name.removeprefix("trunk."))
    return max(ways, key=lambda way: sum(way(name) in there for name in names))


def state_of(backbone: Backbone) -> dict[str, Tensor]:
    """The tensors of a backbone under the names that merges use: without an adapter or a tangent space around it."""
    module = backbone.point if isinstance(backbone, Tangent) else backbone
    return {plain: tensor for name, tensor in module.state_dict().items() if (plain := plain_name(name))}
