"""`pretrained:` → a local directory with config.json and weights: safetensors, or pytorch_model.bin."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.errors import RunFailed, UserError, first_line

log = logging.getLogger(__name__)

SAFE = ["*.safetensors", "*.safetensors.index.json"]
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
"""What weights lay in before safetensors; they are read with `weights_only=True`, so that only tensors come out."""
TOKENIZER = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.model", "*.tiktoken"]
PREPROCESSOR = ["preprocessor_config.json"]
TIMEOUT_S = 5.0
"""For the hub's first answer; downloads themselves may take as long as they need."""
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


def local_checkpoint(pretrained: str, key: str = "backbone.pretrained", also: Sequence[str] = ()) -> Path:
    """The directory of a checkpoint: a local one as it is, a hub id from the cache or else downloaded into it.

    Args:
        pretrained: a directory or a hub id, with @REVISION for a branch, tag or commit of it.
        key: of the configuration that names it, for messages.
        also: patterns of files that are wanted beside config.json and the weights, where the hub has them.

    Raises:
        UserError: there is no such directory or repository, it cannot be reached, or it has no weights.
    """
    where = f"{key}={pretrained}"
    path = _directory(pretrained, where, lambda: _weights_from_hub(pretrained, where, also))
    _must_be_checkpoint(path, where)
    if missing := _missing_shards(path):
        raise UserError(
            f"{where} is incomplete: {missing[0]} is not there ({len(missing)} files missing in all)",
            "download or copy the checkpoint again",
        )
    if not has_weights(path):
        raise UserError(
            f"{where} has no weights: neither *.safetensors nor pytorch_model.bin",
            "load it where it can be read and write it again with save_pretrained()",
        )
    return path


def local_config(pretrained: str, key: str = "backbone.pretrained") -> Path:
    """The directory with a checkpoint's config.json, and perhaps nothing else: what it is, before it is downloaded."""
    where = f"{key}={pretrained}"
    only = ["config.json"]
    path = _directory(pretrained, where, lambda: _cached(pretrained, only) or _from_hub(pretrained, where, only))
    _must_be_checkpoint(path, where)
    return path


def local_tokenizer(checkpoint: str, key: str) -> Path:
    """The directory of a tokenizer's files, which may have no weights beside them; otherwise as `local_checkpoint`."""
    where = f"{key}={checkpoint}"
    return _directory(checkpoint, where, lambda: _tokenizer_from_hub(checkpoint, where))


def _must_be_checkpoint(path: Path, where: str) -> None:
    if not (path / "config.json").is_file():
        raise UserError(
            f"{where} is not a checkpoint: it has no config.json", "save_pretrained() of transformers writes one"
        )


def has_weights(path: Path) -> bool:
    """Whether a directory holds a model's weights in a form that is read."""
    return is_safe(path) or any(path.glob("pytorch_model*.bin"))


def is_safe(path: Path) -> bool:
    """Whether a checkpoint has safetensors, which are then preferred."""
    return any(path.glob("*.safetensors"))


def may_be_on_hub(pretrained: str) -> bool:
    """Whether it reads like a hub id rather than like a path."""
    path = Path(pretrained).expanduser()
    local = path.exists() or path.is_absolute() or pretrained.startswith((".", "~"))
    return not local and _HUB_ID.fullmatch(pretrained) is not None


def is_local(pretrained: str) -> bool:
    """Whether the checkpoint is on this machine, in a directory or whole in the hub's cache; asks nobody else."""
    if Path(pretrained).expanduser().is_dir():
        return True
    return _HUB_ID.fullmatch(pretrained) is not None and _cached_weights(pretrained, ()) is not None


def hub_is_off() -> bool:
    """Whether the environment forbids asking the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _directory(given: str, where: str, download: Callable[[], Path]) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    if not may_be_on_hub(given):
        raise UserError(
            f"{where}: there is no such directory",
            "give a directory with config.json and model.safetensors, a Hugging Face hub id, or null",
        )
    return download()


def _weights_from_hub(hub_id: str, where: str, also: Sequence[str]) -> Path:
    cached = _cached_weights(hub_id, also)
    if cached is not None:
        return cached
    path = _from_hub(hub_id, where, ["config.json", *SAFE, *also])
    return path if is_safe(path) else _from_hub(hub_id, where, ["config.json", *PICKLED, *also])


def _tokenizer_from_hub(hub_id: str, where: str) -> Path:
    wanted = ["config.json", *TOKENIZER]
    cached = _cached(hub_id, wanted)
    return cached if cached is not None and any(cached.glob("*token*")) else _from_hub(hub_id, where, wanted)


def _cached_weights(hub_id: str, also: Sequence[str]) -> Path | None:
    """The directory in the hub's cache, if all that is wanted lies there."""
    for weights in (SAFE, PICKLED):
        path = _cached(hub_id, ["config.json", *weights, *also])
        if path is not None and (path / "config.json").is_file() and has_weights(path) and not _missing_shards(path):
            return path
    return None


def _cached(hub_id: str, wanted: Sequence[str]) -> Path | None:
    """The snapshot in the cache; None where there is none, or where one is known to lack a wanted file."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(**_request(hub_id, wanted), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _from_hub(hub_id: str, where: str, wanted: Sequence[str]) -> Path:
    """The snapshot with all wanted files that the repository has; what is not in the cache is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        with _calm(hub_id):
            path = Path(snapshot_download(**_request(hub_id, wanted), etag_timeout=TIMEOUT_S))
    except Exception as error:  # of several libraries: no network, cut off, gated, not found, a full disk
        raise _explained(error, hub_id, where) from error
    log.info("%s: commit %s of the hub", where, path.name)
    return path


@contextlib.contextmanager
def _calm(hub_id: str) -> Iterator[None]:
    """Progress bars on a terminal, one line elsewhere; of several processes the first speaks."""
    from huggingface_hub import utils

    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        yield
        return
    log.info("downloading %s from the Hugging Face hub", hub_id)
    silent = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            utils.enable_progress_bars()


def _request(hub_id: str, wanted: Sequence[str]) -> dict[str, Any]:
    found = _HUB_ID.fullmatch(hub_id)
    assert found is not None
    return {
        "repo_id": found["name"],
        "revision": found["revision"],
        "allow_patterns": list(wanted),
        "ignore_patterns": ["*/*"],
    }


def _explained(error: Exception, hub_id: str, where: str) -> UserError:
    """What went wrong with the hub, and what helps."""
    from huggingface_hub import constants, errors

    key = where.partition("=")[0]
    name, _, revision = hub_id.partition("@")
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{where}: '{name}' is gated on the Hugging Face hub, and this account may not download it",
            f"accept its terms at {constants.ENDPOINT}/{name}, then `hf auth login` (or set HF_TOKEN)",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UserError(
            f"{where}: neither a local directory nor a repository on the Hugging Face hub",
            "check the spelling; a private or gated repository needs `hf auth login`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{where}: '{name}' has no revision '{revision}' on the Hugging Face hub",
            f"its branches and tags stand at {constants.ENDPOINT}/{name}/tree/main",
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        place = f": {error.filename}" if error.filename else f" in {constants.HF_HUB_CACHE}"
        return RunFailed(
            f"{where} cannot be kept in the hub's cache: {error.strerror}{place}",
            "make room, or set HF_HOME to a folder elsewhere",
        )
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "") + " --local-dir DIR"
    away = f"where there is network, run `{command}`, then set {key}=DIR; or {key}=null"
    if isinstance(error, errors.HfHubHTTPError | errors.LocalEntryNotFoundError | ConnectionError):
        why = "the hub may not be asked (HF_HUB_OFFLINE)" if hub_is_off() else "the Hugging Face hub cannot be reached"
        return UserError(f"{where}: not in the local cache, and {why}{_answer(error)}", away)
    return RunFailed(
        f"{where}: the download broke off: {type(error).__name__}: {first_line(error, 'no message')}",
        "run the same command again: files that arrived whole are kept",
    )


def _answer(error: Exception) -> str:
    """What the hub said, if it answered at all."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", None)
    return f" (it answers {response.status_code} {response.reason_phrase})" if response is not None else ""


def _missing_shards(path: Path) -> list[str]:
    """Files that an index of shards names and that are not there, as after an interrupted download."""
    indices = list(path.glob("*.safetensors.index.json"))
    if not is_safe(path):
        indices += path.glob("pytorch_model.bin.index.json")
    try:
        named = [json.loads(index.read_text(encoding="utf-8"))["weight_map"] for index in indices]
    except (OSError, ValueError, KeyError):
        return []  # a damaged index: loading says so
    shards = {shard for index in named for shard in index.values()}
    return sorted(shard for shard in shards if not (path / shard).is_file())
