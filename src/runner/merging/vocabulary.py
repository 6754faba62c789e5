"""Models whose vocabularies differ: cut to the base's rows (`embed=base`), or joined token by token (`embed=union`).

A padded vocabulary (more rows than tokens), a few added tokens: that is what fine-tuned models bring. Rows that a model
does not have are filled so that they change nothing: an expert's with the base's row (its task vector is zero there),
the base's with the mean over the experts that have the token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runner.errors import Problem, UserError
from runner.files import write_json
from runner.merging.sources import Models, Source, TensorInfo


@dataclass(frozen=True)
class Tokens:
    """A joined vocabulary.

    Attributes:
        rows: of the embeddings.
        added: tokens that the base did not have: their entries for tokenizer.json, new ids in them.
    """

    rows: int
    added: tuple[Mapping[str, Any], ...]

    def write(self, folder: Path) -> None:
        """Bring the copied configuration and tokenizer in `folder` up to date."""
        path = folder / "config.json"
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            for section in (config, config.get("text_config") or {}):
                if "vocab_size" in section:
                    section["vocab_size"] = self.rows
            write_json(path, config)
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        tokenizer["added_tokens"] = [*tokenizer.get("added_tokens", []), *self.added]
        write_json(path, tokenizer)
        path = folder / "tokenizer_config.json"
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            if "added_tokens_decoder" in settings:
                for entry in self.added:
                    settings["added_tokens_decoder"][str(entry["id"])] = {k: v for k, v in entry.items() if k != "id"}
                write_json(path, settings)


class Rows(Source):
    """A source with other rows in some of its tensors.

    Args:
        inner: where rows come from.
        rows: tensor → for every row of the result the row of `inner`, or -1.
        filled: tensor → the rows that `inner` does not have, in order.
    """

    def __init__(self, inner: Source, rows: Mapping[str, Tensor], filled: Mapping[str, Tensor]) -> None:
        self.source, self.label, self.folder, self.aliases = inner, inner.label, inner.folder, inner.aliases
        self._rows, self._filled = rows, filled
        self._infos = {
            name: TensorInfo((len(rows[name]), *info.shape[1:]), info.dtype) if name in rows else info
            for name, info in inner.tensors().items()
        }

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        if name not in self._rows:
            return self.source.read(name, start, stop)
        info = self._infos[name]
        width = info.numel // info.shape[0]
        stop = info.numel if stop is None else stop
        first, last = start // width, -(-stop // width)
        rows = self._rows[name]
        lacking = int((rows[:first] < 0).sum())
        pieces = []
        for run in _runs(rows[first:last]):
            if run[0] < 0:
                piece = self._filled[name][lacking : lacking + len(run)].reshape(-1).to(info.dtype)
                lacking += len(run)
            else:
                piece = self.source.read(name, int(run[0]) * width, (int(run[-1]) + 1) * width)
            pieces.append(piece)
        values = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return values[start - first * width : stop - first * width]

    def close(self) -> None:
        self.source.close()


def _runs(rows: Tensor) -> list[Tensor]:
    """Row numbers cut into runs that follow one another, and runs of -1."""
    if len(rows) < 2:
        return [rows]
    step = rows.diff()
    together = (step == 1) & (rows[:-1] >= 0) | (rows[:-1] < 0) & (rows[1:] < 0)
    cuts = (~together).nonzero().view(-1) + 1
    return list(torch.tensor_split(rows, cuts))


def reconcile(models: Models, embed: Literal["base", "union", "error"]) -> tuple[Models, Tokens | None]:
    """Give all models the same vocabulary, if they differ in it.

    Raises:
        UserError: `embed=union`, and the vocabularies cannot be joined.
    """
    origin = models.base or next(iter(models.experts.values()))
    names = {label: _vocabulary_tensors(origin, source) for label, source in models.experts.items()}
    if embed == "error" or (embed == "base" and not any(names.values())):
        return models, None
    if embed == "base":
        experts = {}
        for label, source in models.experts.items():
            tables = {}
            for name in names[label]:
                ours, theirs = origin.tensors()[name].shape[0], source.tensors()[name].shape[0]
                table = torch.arange(ours)
                table[theirs:] = -1
                tables[name] = table
            experts[label] = Rows(source, tables, _from(origin, tables)) if tables else source
        return Models(experts, models.base), None
    return _union(models, origin, list(dict.fromkeys(n for found in names.values() for n in found)))


def _vocabulary_tensors(origin: Source, source: Source) -> list[str]:
    """Tensors of an expert that differ from the base's in the number of rows only, and have a row per token."""
    found = []
    sizes = (_vocab_size(origin), _vocab_size(source))
    for name, info in source.tensors().items():
        ours = origin.tensors().get(name)
        if ours is None or ours.shape == info.shape or not info.shape or ours.shape[1:] != info.shape[1:]:
            continue
        named = any(word in name for word in ("embed", "wte", "lm_head", "shared.", "vocab", "decoder.bias"))
        if named or (ours.shape[0], info.shape[0]) == sizes:
            found.append(name)
    return found


def _vocab_size(source: Source) -> int | None:
    path = None if source.folder is None else source.folder / "config.json"
    if path is None or not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")


def _from(origin: Source, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's rows where a table says -1."""
    found = {}
    for name, table in tables.items():
        lacking = (table < 0).nonzero().view(-1)
        found[name] = origin.whole(name)[lacking].clone()
    return found


# ---- joining -----------------------------------------------------------------------------------------------------


def _tokenizer(source: Source) -> dict[str, Any]:
    path = None if source.folder is None else source.folder / "tokenizer.json"
    if path is None or not path.is_file():
        raise UserError(
            f"embed=union: {source.label} has no tokenizer.json", "save its tokenizer beside it, or use embed=base"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"vocab": content["model"]["vocab"], "added": {e["content"]: e for e in content["added_tokens"]}}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer", "save it again with transformers") from error


def _union(models: Models, origin: Source, names: list[str]) -> tuple[Models, Tokens | None]:
    problems: list[Problem] = []
    tokenizers = {}
    for source in (origin, *models.experts.values()):
        try:
            tokenizers[source.label] = _tokenizer(source)
        except UserError as error:
            problems += error.problems
    if not problems:
        for label, tokenizer in tokenizers.items():
            if tokenizer["vocab"] != tokenizers[origin.label]["vocab"]:
                what = f"embed=union: the vocabulary of {label} differs from that of {origin.label} beyond added tokens"
                problems.append(Problem(what, "only added tokens can be joined; embed=base keeps the base's tokenizer"))
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    ours = tokenizers[origin.label]
    known = {token: entry["id"] for token, entry in ours["added"].items()}
    vocab = ours["vocab"]
    regular = len(vocab) if isinstance(vocab, list) else max(vocab.values(), default=-1) + 1
    following = max([regular - 1, *known.values()]) + 1
    added: list[dict[str, Any]] = []
    for label in models.experts:
        for token, entry in sorted(tokenizers[label]["added"].items(), key=lambda item: item[1]["id"]):
            if token not in known:
                known[token] = following
                added.append({**entry, "id": following})
                following += 1
    names = names or _token_tensors(origin, added)
    if not names:
        return models, None
    rows = max(origin.tensors()[names[0]].shape[0], following)
    new = [entry["id"] for entry in added]
    filled_base = {name: _mean_rows(models, tokenizers, name, added) for name in names}
    base = None
    if models.base is not None:
        tables = {name: _own_rows(models.base, name, rows, new) for name in names}
        base = Rows(models.base, tables, {n: _complete(models.base, n, tables[n], new, filled_base[n]) for n in names})
    experts = {}
    for label, source in models.experts.items():
        theirs = {token: entry["id"] for token, entry in tokenizers[label]["added"].items()}
        tables, filled = {}, {}
        for name in names:
            count = source.tensors()[name].shape[0]
            table = torch.arange(rows)
            table[min(count, regular) :] = -1
            for token, index in known.items():
                if token in theirs and theirs[token] < count:
                    table[index] = theirs[token]
            tables[name] = table
            whole = base or Rows(
                origin,
                {name: _own_rows(origin, name, rows, new)},
                {name: _complete(origin, name, _own_rows(origin, name, rows, new), new, filled_base[name])},
            )
            filled[name] = whole.whole(name)[(table < 0).nonzero().view(-1)].clone()
        experts[label] = Rows(source, tables, filled)
    return Models(experts, base), Tokens(rows, tuple(added))


def _token_tensors(origin: Source, added: list[dict[str, Any]]) -> list[str]:
    """The tensors with a row per token, when no model differs in their shapes (all are padded) but tokens do."""
    size = _vocab_size(origin)
    return [n for n, i in origin.tensors().items() if added and size and i.shape[:1] == (size,)]


def _own_rows(source: Source, name: str, rows: int, new: list[int]) -> Tensor:
    """The base's own row of every token; -1 for new tokens and for rows beyond its table."""
    table = torch.arange(rows)
    table[source.tensors()[name].shape[0] :] = -1
    table[new] = -1
    return table


def _mean_rows(models: Models, tokenizers: Mapping[str, Any], name: str, added: list[dict[str, Any]]) -> Tensor:
    """For every new token the mean row over the experts that have it, float32."""
    found = []
    for entry in added:
        rows = []
        for label, source in models.experts.items():
            theirs = tokenizers[label]["added"].get(entry["content"])
            info = source.tensors()[name]
            if theirs is not None and theirs["id"] < info.shape[0]:
                width = info.numel // info.shape[0]
                rows.append(source.read(name, theirs["id"] * width, (theirs["id"] + 1) * width).float())
        found.append(torch.stack(rows).mean(0))
    shape = next(iter(models.experts.values())).tensors()[name].shape[1:]
    return torch.stack(found).view(-1, *shape) if found else torch.empty(0, *shape)


def _complete(source: Source, name: str, table: Tensor, new: list[int], means: Tensor) -> Tensor:
    """What stands in the base's rows that it lacks: the means of new tokens, zeros in rows that mean nothing."""
    lacking = (table < 0).nonzero().view(-1).tolist()
    found = dict(zip(new, means, strict=True))
    zero = torch.zeros(source.tensors()[name].shape[1:])
    return torch.stack([found.get(row, zero) for row in lacking]) if lacking else torch.empty(0, *zero.shape)
