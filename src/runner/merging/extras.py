"""What a merged model needs beside its weights: configuration, tokenizer, processor; copied from the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runner.errors import Problem
from runner.files import write_json
from runner.merging.sources import Models, Source

PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
)
"""Files that are no weights and that a loader reads; code (`*.py`) is never among them."""

TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")


def copy_extras(origin: Source, out: Path, dtype: str) -> list[str]:
    """Copy them, and let the configuration say what changed; returns the names.

    Args:
        origin: the base, or what stands for it.
        out: where to.
        dtype: the setting: "base" or a name of torch.
    """
    folder = origin.folder
    main = next((n for n in ("config.json", "adapter_config.json") if folder and (folder / n).is_file()), None)
    if folder is None or main is None:
        return []
    names = sorted({p.name for pattern in (main, *PATTERNS) for p in folder.glob(pattern) if p.is_file()})
    for name in names:
        shutil.copyfile(folder / name, out / name)
    changes = dict(getattr(origin, "changes", {}))
    config = json.loads((folder / main).read_text(encoding="utf-8"))
    if dtype != "base":
        changes |= {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    if changes:
        write_json(out / main, config | changes)
    return names


def compare_configs(models: Models) -> list[Problem]:
    """Configurations that say the models are of different kinds."""
    found: dict[str, str] = {}
    for source in (*([models.base] if models.base else []), *models.experts.values()):
        path = None if source.folder is None else source.folder / "config.json"
        if path is None or not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return [Problem(f"{path} cannot be read as JSON", "repair it, or take it away")]
        if isinstance(config, dict) and config.get("model_type"):
            found[source.label] = str(config["model_type"])
    if len(set(found.values())) > 1:
        kinds = ", ".join(f"{label}: {kind}" for label, kind in found.items())
        return [Problem(f"the models are of different kinds ({kinds})", "merge models of one architecture")]
    return []


def compare_tokenizers(models: Models) -> list[str]:
    """Notes on tokenizers that differ although the weights fit: which one the result gets."""
    origin = models.base or next(iter(models.experts.values()))
    notes = []
    for source in models.experts.values():
        if source is origin or source.folder is None or origin.folder is None:
            continue
        for name in TOKENIZER:
            ours, theirs = origin.folder / name, source.folder / name
            if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
                notes.append(f"{name} of {source.label} differs from that of {origin.label}, which the result gets")
                break
    return notes
