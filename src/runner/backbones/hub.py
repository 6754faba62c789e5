"""`pretrained:` → a local directory with config.json and safetensors weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from runner.errors import UserError

FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]
TIMEOUT_S = 5.0
"""For the hub's first answer; downloads themselves may take as long as they need."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_checkpoint(pretrained: str, key: str = "backbone.pretrained") -> Path:
    """The directory of a checkpoint: a local one as it is, a hub id from the cache or else downloaded into it.

    Args:
        pretrained: a directory or a hub id.
        key: of the configuration that names it, for messages.

    Raises:
        UserError: there is no such directory or repository, it cannot be reached, or it has no safetensors weights.
    """
    where = f"{key}={pretrained}"
    path = Path(pretrained).expanduser()
    if not path.is_dir():
        if not may_be_on_hub(pretrained):
            raise UserError(
                f"{where}: there is no such directory",
                "give a directory with config.json and model.safetensors, a Hugging Face hub id, or null",
            )
        path = _from_hub(pretrained, where)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{where} is not a checkpoint: it has no config.json", "save_pretrained() of transformers writes one"
        )
    if missing := _missing_shards(path):
        raise UserError(
            f"{where} is incomplete: {missing[0]} is not there ({len(missing)} files missing in all)",
            "download or copy the checkpoint again",
        )
    if not any(path.glob("*.safetensors")):
        raise UserError(
            f"{where} has no safetensors weights, and pickled ones are never read",
            "load it once where you trust it and write it again with save_pretrained()",
        )
    return path


def may_be_on_hub(pretrained: str) -> bool:
    """Whether it reads like a hub id rather than like a path."""
    path = Path(pretrained).expanduser()
    local = path.exists() or path.is_absolute() or pretrained.startswith((".", "~"))
    return not local and _HUB_ID.fullmatch(pretrained) is not None


def is_local(pretrained: str) -> bool:
    """Whether the checkpoint is on this machine, in a directory or in the hub's cache; asks nobody else."""
    if Path(pretrained).expanduser().is_dir():
        return True
    if not _HUB_ID.fullmatch(pretrained):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(pretrained, "config.json"), str)


def _from_hub(hub_id: str, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    key = where.partition("=")[0]
    options = {"allow_patterns": FILES, "ignore_patterns": ["*/*"]}
    try:
        cached = Path(snapshot_download(hub_id, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        cached = None
    if cached is not None and any(cached.glob("*.safetensors")) and not _missing_shards(cached):
        return cached
    try:
        return Path(snapshot_download(hub_id, etag_timeout=TIMEOUT_S, **options))
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{where}: neither a local directory nor a repository on the Hugging Face hub",
            "check the spelling; a private or gated repository needs `hf auth login`",
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"{where}: not in the local cache, and the Hugging Face hub cannot be reached",
            f"where there is network, run `hf download {hub_id} --local-dir DIR`, then set {key}=DIR; or {key}=null",
        ) from error


def _missing_shards(path: Path) -> list[str]:
    """Files that an index of shards names and that are not there, as after an interrupted download."""
    try:
        indices = [
            json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            for index in path.glob("*.safetensors.index.json")
        ]
    except (OSError, ValueError, KeyError):
        return []  # a damaged index: loading says so
    shards = {shard for index in indices for shard in index.values()}
    return sorted(shard for shard in shards if not (path / shard).is_file())
