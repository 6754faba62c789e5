"""Merging in memory: state dicts in, state dict out. Evaluation loops and coefficient searches use this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from runner.merging.base import Merge, Merged, TaskVectorMerge, WholeModel, refuse
from runner.merging.blocks import Split
from runner.merging.coefficients import matches
from runner.merging.decoders import decode, read_by, unpacked
from runner.merging.engine import Engine, Piece, load
from runner.merging.sources import RUNNING, Models


def mergeable(models: Models, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """The floating-point weights that every model has; tied ones once, statistics of batch normalisation left out.

    Args:
        models: what is merged.
        include: patterns of names that are merged; empty for all.
        exclude: patterns of names that are not.
    """
    sources = [*([models.base] if models.base else []), *models.experts.values()]
    names = []
    for name, info in sources[0].tensors().items():
        if not info.dtype.is_floating_point or name in sources[0].aliases or not info.numel:
            continue
        if name.rpartition(".")[2] in RUNNING:
            continue
        if include and not any(matches(p, name) for p in include):
            continue
        if any(matches(p, name) for p in exclude) or not all(name in s.tensors() for s in sources[1:]):
            continue
        names.append(name)
    return names


def merge_in_memory(
    merge: Merge,
    models: Models,
    names: Sequence[str] | None = None,
    *,
    threads: int = 1,
    piece: int = 1 << 20,
    keep_dtype: bool = False,
) -> Merged:
    """Merge models that are held in memory, or read whole models from disk into memory.

    Args:
        merge: a data-free strategy.
        models: experts and base.
        names: the tensors to merge; default: `mergeable(models)`. The result holds these and nothing else.
        threads: that work on it.
        piece: elements of a slice.
        keep_dtype: store as the base (or the first expert) does instead of float32.

    Raises:
        UserError: the strategy does not take these models.
    """
    refuse(merge.check(models.names, models.base is not None))
    names = mergeable(models) if names is None else list(names)
    if isinstance(merge, WholeModel):
        return Merged(merge.merge_all(models, names))
    engine = Engine(merge, models, names, threads=threads, piece=piece)
    engine.prepare()
    origin = models.base or next(iter(models.experts.values()))
    kinds = {n: origin.tensors()[n].dtype if keep_dtype else torch.float32 for n in names}
    shared = {name: torch.empty(info.shape, dtype=kinds[name]) for name, info in engine.infos.items()}
    parts = {
        part: {
            n: torch.zeros(merge.code_bytes(part, i.shape, models.names), dtype=torch.uint8)
            for n, i in engine.infos.items()
        }
        for part in merge.parts(models.names)
    }

    def place(piece: Piece) -> None:
        merged = engine.merged(piece)
        if isinstance(merged, Split):
            for part, codes in merged.parts.items():
                bits = merge.parts(models.names)[part]
                at = piece.start * bits // 8
                parts[part][piece.name][at : at + len(codes)] = codes
            merged = merged.shared
        shared[piece.name].view(-1)[piece.start : piece.stop] = merged.reshape(-1).to(kinds[piece.name])

    engine.visit(list(engine.pieces()), place, copies=merge.copies)
    result = Merged(shared, parts, engine.state)
    if merge.decoder:
        result.restorers = {e: partial(_restored, merge, models, result, e) for e in models.names}
    return result


def _restored(merge: Merge, models: Models, merged: Merged, expert: str) -> dict[str, Tensor]:
    """The weights of one expert's task."""
    assert merge.decoder is not None
    bits = merge.parts(models.names)
    out = {}
    for name, shared in merged.tensors.items():
        count = shared.numel()
        whole = Piece(name, (count,), 0, count, True)
        base = torch.zeros(count) if models.base is None else load(models.base, whole)
        codes = {
            part: unpacked(merged.parts[part][name], b, shared.shape, 0, count)
            for part, b in bits.items()
            if read_by(part, expert)
        }
        scalars = merge.scalars(name, models.names, merged.state)
        flat = decode(merge.decoder, expert, base, shared.reshape(-1).float(), codes, scalars)
        out[name] = flat.view(shared.shape)
    return out


def line(merge: TaskVectorMerge, models: Models, names: Sequence[str] | None = None) -> Mapping[str, Tensor]:
    """The direction δ of a merge: θ(scale) = θ₀ + scale · δ, so that a curve over `scale` merges once."""
    refuse(merge.check(models.names, models.base is not None))
    names = mergeable(models) if names is None else list(names)
    engine = Engine(merge, models, names, piece=1 << 20)
    engine.prepare()
    out = {name: torch.empty(info.shape) for name, info in engine.infos.items()}
    for piece in engine.pieces():
        merged = merge.direction(engine.block(piece), engine.state)
        out[piece.name].view(-1)[piece.start : piece.stop] = merged.reshape(-1)
    return out
