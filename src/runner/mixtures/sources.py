"""Where the examples of one data set come from, as a mixture's YAML says it: `mixture.sources.NAME`.

A source is a folder or file of the user's, below `data_root`, or a data set of the Hugging Face hub:

    folder/train.parquet, test.parquet           one file per split: .parquet .csv .tsv .json .jsonl
    folder/[data/]train-00000-of-00002.parquet   several files per split, as the hub names them
    folder/train/CLASS/IMAGE                     one folder of images per class
    folder/CLASS/IMAGE, or one file              no splits: validation and test are carved

Local sources never touch the network. Nothing here opens a file; `runner.mixtures.rows` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runner.config.keys import schema_keys
from runner.config.kinds import NonNegativeFloat
from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Split, carve
from runner.mixtures.locate import locate, missing

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TABLES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set.

    Attributes:
        labels: task → where its labels stand: a column name, or a mapping, see `runner.mixtures.labels`.
        path: a folder or file. Takes precedence over `hub`, which path=null reads in any case.
        hub: id of a data set on the Hugging Face hub, read with `mixture.hub=true` where `path` is not there.
        subset, revision: of the hub's data set ("configuration name", commit or tag).
        files: split → file or list of files, relative to `path`, with wildcards; for names that are not the split's.
        splits: split → its name in the source, null for "has none"; those left out keep their own name, unless
            another split has taken it ({test: validation} leaves nothing for validation, which is then carved).
        validation, test: carved from train where the source has no such split: a share (0.1) or a number (500).
            None takes the mixture's value.
        only: column → values: rows with other values are left out, as if the source did not have them.
    """

    labels: dict[str, Any]
    path: str | None = None
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    files: dict[str, Any] | None = None
    splits: dict[str, str | None] = field(default_factory=dict)
    validation: NonNegativeFloat | None = None
    test: NonNegativeFloat | None = None
    only: dict[str, list[Any]] | None = None

    def split_name(self, split: Split) -> str | None:
        """What the source calls a split; None where it says that it has none."""
        taken = split in self.splits.values()
        return self.splits.get(split, None if taken else split)


S = TypeVar("S", bound=Source)


def check_mapping(kind: type, where: str, given: Mapping[str, Any]) -> list[Problem]:
    """Unknown keys, missing keys and values of the wrong kind in a mapping that becomes the dataclass `kind`."""
    keys, problems = schema_keys(kind), []
    for key, value in given.items():
        if key not in keys:
            problems.append(Problem(f"unknown key '{where}.{key}'", suggest(str(key), keys)))
        elif not keys[key].kind.accepts(value):
            problems.append(Problem(f"'{where}.{key}' must be {keys[key].kind.words}, not {value!r}"))
    required = [key for key in keys if keys[key].required and key not in given]
    return problems + [Problem(f"missing value for '{where}.{key}'") for key in required]


def parse_sources(kind: type[S], configs: Mapping[str, Any]) -> tuple[dict[str, S], list[Problem]]:
    """The sources of a mixture that are written correctly, and what is wrong with the others; null leaves one out."""
    sources: dict[str, S] = {}
    problems = []
    for name, config in configs.items():
        where = f"mixture.sources.{name}"
        if config is None:
            continue
        if not isinstance(config, Mapping):
            problems.append(Problem(f"'{where}' must be a mapping with path and labels, not {config!r}"))
            continue
        wrong = check_mapping(kind, where, config)
        for key in ("files", "splits"):
            named = config.get(key)
            for split in named if isinstance(named, Mapping) else ():
                if split not in SPLITS:
                    wrong.append(Problem(f"unknown key '{where}.{key}.{split}'", suggest(str(split), SPLITS)))
        if isinstance(config.get("splits"), Mapping):
            names = [inside for inside in config["splits"].values() if inside is not None]
            for inside in {n for n in names if names.count(n) > 1}:
                wrong.append(Problem(f"'{where}.splits' uses '{inside}' more than once: splits may not overlap"))
        if config.get("files") is not None and config.get("path") is None:
            wrong.append(Problem(f"'{where}.files' are relative to a path, and there is none", f"set {where}.path"))
        if config.get("path") is None and config.get("hub") is None:
            wrong.append(Problem(f"'{where}' has neither path nor hub", "give a folder, or the id of a hub data set"))
        if not wrong:
            sources[name] = kind(**config)
        problems += wrong
    if not sources and not problems:
        problems.append(Problem("'mixture.sources' is empty: there is nothing to learn from"))
    return sources, problems


def on_hub(source: S, data_root: str) -> S:
    """The source as it is, or without its path where nothing is there and the hub has it."""
    gone = source.path is not None and source.hub is not None and locate(source.path, data_root) is None
    return replace(source, path=None, files=None) if gone else source


def local_files(source: Source, name: str, data_root: str) -> dict[str, list[Path]]:
    """Source split → its files, or its folder of one folder per class; "train" where nothing names splits.

    Raises:
        UserError: nothing is there, or not what `files` names.
    """
    path = str(source.path)
    root = locate(path, data_root)
    if root is None:
        hub = f"mixture.hub=true reads '{source.hub}' from the Hugging Face hub" if source.hub else ""
        get = f"put train.parquet and test.parquet there, or set mixture.sources.{name}.path"
        raise UserError(missing(f"data set '{name}'", path, data_root, hub or get, see="runner ls mixture"))
    if root.is_file():
        if source.files is not None:
            what = f"data set '{name}': 'mixture.sources.{name}.files' needs a folder as path, {root} is a file"
            raise UserError(what, f"set mixture.sources.{name}.path={root.parent}")
        return {"train": [root]}
    if source.files is not None:
        return _named_files(source.files, name, root)
    names = dict.fromkeys([*(name for name in source.splits.values() if name), *SPLITS])
    found = {inside: files for inside in names if (files := _split_files(root, inside))}
    if not found and _class_folders(root):
        found["train"] = [root]
    if not found:
        holds = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        what = f"data set '{name}': {root} has no file or folder named after a split (it holds {holds})"
        raise UserError(what, "name them train.parquet, test.csv, … or list them: mixture.sources." + name + ".files")
    return found


def check_splits(source: Source, name: str, found: Mapping[str, Any], test: float | int | None) -> list[Problem]:
    """Splits that are neither there nor can be carved.

    Args:
        found: the source's own split names. test: the mixture's `test`.
    """
    where, problems = f"mixture.sources.{name}", []
    for split, inside in source.splits.items():
        if inside is not None and inside not in found:
            what = f"data set '{name}' has no split '{inside}' ({where}.splits.{split})"
            problems.append(Problem(what, suggest(inside, found)))
    if source.split_name("train") not in found and not problems:
        what = f"data set '{name}' has no split '{source.split_name('train')}' to train on"
        problems.append(Problem(what, f"{suggest('train', found)}; name it: {where}.splits.train=NAME"))
    elif source.split_name("test") not in found and not problems and source.test is None and test is None:
        hint = f"carve one from train: {where}.test=0.2, or name one: {where}.splits.test=NAME"
        problems.append(Problem(f"data set '{name}' has no test split", f"{hint} (it has {', '.join(found)})"))
    return problems


def carve_splits(
    size: int, found: Collection[str], source: Source, name: str, shares: Mapping[Split, float | int | None], seed: int
) -> dict[Split, tuple[str, np.ndarray | None]]:
    """Split → (the source's split, ascending row numbers; None for all rows).

    Test is carved before validation, so that another `validation` leaves the test set as it is.

    Args:
        size: rows of the source's training split. found: the source's splits.
        shares: the mixture's `validation` and `test`; the source's own values come first.
        seed: `mixture.split_seed`.

    Raises:
        UserError: a part would be empty.
    """
    train = str(source.split_name("train"))
    rest, parts = np.arange(size), {}
    for split, own in (("test", source.test), ("validation", source.validation)):
        inside = source.split_name(split)
        if inside is not None and inside in found:
            parts[split] = (inside, None)
            continue
        share = (shares.get(split) or 0) if own is None else own
        try:
            kept, taken = carve(len(rest), share, seed)
        except UserError as error:
            raise UserError(
                f"data set '{name}': {split}={share} of {len(rest)} examples leaves nothing on one side",
                f"give a share such as 0.1, or a number: mixture.sources.{name}.{split}",
            ) from error
        parts[split], rest = (train, rest[taken]), rest[kept]
    return {"train": (train, rest if len(rest) < size else None), **parts}


def _named_files(files: Mapping[str, Any], name: str, root: Path) -> dict[str, list[Path]]:
    found = {}
    for split, patterns in files.items():
        listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
        found[split] = [path for pattern in listed for path in sorted(root.glob(pattern))]
        if listed and not found[split]:
            names = [p.name for p in root.iterdir() if p.is_file()]
            raise UserError(
                f"data set '{name}': no file matches '{', '.join(listed)}' in {root}", suggest(listed[0], names)
            )
    return {split: paths for split, paths in found.items() if paths}


def _split_files(root: Path, split: str) -> list[Path]:
    for folder in (root, root / "data"):
        files = [
            p
            for p in folder.glob(f"{split}[-.]*")
            if p.suffix in TABLES and (p.stem == split or p.stem[len(split)] == "-")
        ]
        if files:
            return sorted(files)
    folder = root / split
    inside = sorted(p for p in folder.glob("*") if p.suffix in TABLES) if folder.is_dir() else []
    return inside or ([folder] if folder.is_dir() and _class_folders(folder) else [])


def _class_folders(root: Path) -> bool:
    """Whether a folder holds folders of images."""
    folders = (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    return any(f.suffix.lower() in IMAGES for folder in folders for f in folder.iterdir())
