"""From a path to the tensors that lie there: safetensors, an index of shards, torch files, adapters, runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from runner.errors import Problem, UserError
from runner.merging.adapters import CONFIG, AdapterSource, FactorSource
from runner.merging.disk import SafetensorsSource, some
from runner.merging.prefixes import aligned
from runner.merging.sources import Models, Source
from runner.merging.torch_files import TorchSource

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
TORCH = (".bin", ".pt", ".pth")


def open_models(paths: Sequence[str], base: str | None, names: Sequence[str] | None = None) -> Models:
    """Open everything that is merged; all problems at once.

    Args:
        paths: of the experts; adapters are put on the base.
        base: of the base, or None.
        names: of the experts; default: their folders' names.

    Raises:
        UserError: with every problem.
    """
    problems: list[Problem] = []
    labels = list(names) if names else expert_names(paths)
    opened: Source | None = None
    if base is not None:
        try:
            opened = open_source(Path(base), "base")
        except UserError as error:
            problems += error.problems
    experts: dict[str, Source] = {}
    for label, path in zip(labels, paths, strict=True):
        try:
            if is_adapter(Path(path)) and base is not None and opened is None:
                continue  # said already
            experts[label] = open_source(Path(path), label, opened)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    origin = opened or next(iter(experts.values()))
    return Models({label: aligned(source, origin) for label, source in experts.items()}, opened)


def open_adapters(paths: Sequence[str], base: str | None, names: Sequence[str] | None = None) -> Models:
    """Open adapters by themselves, for strategies that merge their factors; all problems at once.

    Raises:
        UserError: one is no adapter, or there is a base, which these strategies do not read.
    """
    problems: list[Problem] = []
    if base is not None:
        problems.append(Problem("this strategy merges adapters by themselves and reads no base", "leave base out"))
    experts: dict[str, Source] = {}
    for label, path in zip(names or expert_names(paths), paths, strict=True):
        try:
            if not is_adapter(Path(path)):
                raise UserError(f"'{path}' is no adapter: it has no {CONFIG}", "this strategy merges LoRA adapters")
            experts[label] = FactorSource(Path(path), label)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return Models(experts)


def expert_names(paths: Sequence[str]) -> list[str]:
    """Short names that tell paths apart: the last part, with the parts before it where that is not enough."""
    parts = [Path(p).expanduser().absolute().parts for p in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return [name.replace("/", "-").removesuffix(".safetensors") for name in names]


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter as PEFT saves it."""
    return (path / CONFIG).is_file()


def open_source(path: Path, label: str, base: Source | None = None) -> Source:
    """Open one model.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if "@" in path.name and not path.exists():  # one task of a merge that stores codes per task
        from runner.merging.restored import RestoredSource

        folder, _, task = str(path).rpartition("@")
        return RestoredSource(Path(folder), task, label, base)
    if path.is_file():
        return _open_file(path, label)
    if not path.is_dir():
        raise UserError(
            f"there is no model at '{path}'", "give a folder with safetensors or torch files, or such a file"
        )
    if is_adapter(path):
        if base is None:
            raise UserError(f"'{path}' is an adapter and needs the model it was trained on", "give it: base=DIR")
        return AdapterSource(path, base, label)
    for index in INDEXES:
        if (path / index).is_file():
            return _open_index(path / index, label)
    for single in SINGLE:
        if (path / single).is_file():
            return _open_file(path / single, label)
    for folder in (path / "checkpoints" / "best", path / "checkpoints" / "latest"):  # a run of ours
        if (folder / "model.safetensors").is_file():
            return _open_file(folder / "model.safetensors", label)
    files = sorted(p for p in path.iterdir() if p.suffix == ".safetensors")
    files = files or sorted(p for p in path.iterdir() if p.suffix in TORCH and not p.name.startswith("training_args"))
    if len(files) == 1:
        return _open_file(files[0], label)
    if files:
        names = some([p.name for p in files])
        raise UserError(
            f"'{path}' holds several files and no index that joins them: {names}",
            f"the index ({INDEXES[0]}) is missing, or give one file",
        )
    raise UserError(f"'{path}' holds no weights", "looked for *.safetensors, *.bin, *.pt and their indexes")


def _open_file(path: Path, label: str) -> Source:
    if path.name.endswith(".index.json"):
        return _open_index(path, label)
    if path.suffix == ".safetensors":
        return SafetensorsSource([path], label)
    if path.suffix in TORCH:
        return TorchSource([path], label)
    raise UserError(f"'{path}' is no model file", "known: .safetensors, .bin, .pt, .pth, an index, or a folder")


def _open_index(path: Path, label: str) -> Source:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the index cannot be read", "it maps tensors to files under 'weight_map'") from error
    files = [path.parent / str(name) for name in names]
    outside = [f for f in files if f.parent.resolve() != path.parent.resolve()]
    if outside:
        raise UserError(f"{path}: the index names a file outside its folder: {outside[0]}")
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise UserError(
            f"{path.parent}: {len(missing)} of {len(files)} shards are missing: {some(missing)}",
            "copy or download them",
        )
    if not files:
        raise UserError(f"{path}: the index names no tensors")
    if files[0].suffix == ".safetensors":
        return SafetensorsSource(files, label, weight_map)
    return TorchSource(files, label)
