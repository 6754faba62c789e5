"""Merging to disk: a few pieces in memory at a time, shards as they are done, resumed after a kill.

Everything is written into `.NAME.merging` beside the target and renamed at the very end, so that nothing half-written
ever stands under the final name. A merge of the same inputs with the same settings goes on after the shards that are
whole; what the first look at the models found is kept as well.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import RunFailed, UserError
from runner.files import size_in_words, write_json
from runner.merging.base import Arrangement, Merge, WholeModel
from runner.merging.blocks import Split
from runner.merging.disk import some
from runner.merging.engine import Engine, Piece, finite
from runner.merging.plan import Output, Plan
from runner.merging.rules.average import Average
from runner.merging.sources import Source, StateDict, TensorInfo
from runner.merging.target import Target
from runner.merging.writer import Later, SafetensorsWriter, shard, shard_names

COPY = 1 << 20
"""Elements that are copied at a time."""

Tell = Callable[[int, int], None]
"""Called with (elements done, elements in all)."""


@dataclass(frozen=True)
class Shard:
    """Files that are written together: tensors of the model, and their codes per task.

    Attributes:
        outputs: the tensors.
        name: of the model's file.
        parts: part → file of its codes.
    """

    outputs: tuple[Output, ...]
    name: str
    parts: Mapping[str, str]

    @property
    def files(self) -> list[str]:
        """All of its files."""
        return [self.name, *self.parts.values()]


def layout(merge: Merge, plan: Plan, limit: int) -> list[Shard]:
    """Which tensors go into which file; tied tensors lie beside one another."""
    order: dict[str, list[Output]] = {}
    for output in plan.outputs:
        order.setdefault(output.origin, []).append(output)
    by_name = dict(order)
    sizes = [(origin, sum(o.info.bytes for o in outputs)) for origin, outputs in order.items()]
    groups = shard(sizes, limit)
    joined = isinstance(merge, Arrangement) and merge.adapters
    names = shard_names("adapter_model" if joined else "model", len(groups))
    files = {part: shard_names(f"tasks/{part}", len(groups)) for part in merge.parts(plan.models.names)}
    return [
        Shard(
            tuple(o for origin in group for o in by_name[origin]),
            names[n],
            {p: shards[n] for p, shards in files.items()},
        )
        for n, group in enumerate(groups)
    ]


def bytes_of(merge: Merge, shard_: Shard, experts: tuple[str, ...]) -> int:
    """Bytes of a shard with its codes."""
    codes = sum(
        merge.code_bytes(part, o.info.shape, experts)
        for part in merge.parts(experts)
        for o in shard_.outputs
        if o.action == "merge"
    )
    return sum(o.info.bytes for o in shard_.outputs) + codes


RESERVE = 16 * 2**20
"""Bytes of the disk that a merge leaves free, for its records and for everybody else."""


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to start what cannot end.

    Raises:
        UserError: there is not enough room.
    """
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        raise UserError(
            f"the merge needs {size_in_words(needed + RESERVE)} on the disk of '{folder.parent}', "
            f"{size_in_words(free)} are free",
            "make room, choose another out=DIR, or store less with dtype=bfloat16",
        )


def stream(
    merge: Merge, plan: Plan, target: Target, *, shard_bytes: int, threads: int, budget: int, tell: Tell
) -> dict[str, Any]:
    """Write the merged tensors into `target`; returns what `merge.json` says about them.

    Raises:
        UserError: not enough disk, or NaN in an input.
        RunFailed: the disk is full, or the strategy gave NaN.
    """
    shards = layout(merge, plan, shard_bytes)
    waiting = [s for s in shards if not all((target.folder / f).is_file() for f in s.files)]
    check_disk(target.folder, sum(bytes_of(merge, s, plan.models.names) for s in waiting))
    engine = Engine(merge, plan.models, plan.merged, threads=threads, budget=budget)
    if isinstance(merge, WholeModel):
        found = merge.merge_all(plan.models, plan.merged) if waiting else {}
        whole = StateDict(found, "result") if waiting else None
    else:
        whole = None
        target.remember(engine.prepare(target.states))
    work = _Work(merge, plan, engine, whole, tell)
    later = Later()
    try:
        try:
            for group in waiting:
                later.do(work.write(group, target.folder))
        finally:
            later.wait()
    except OSError as error:
        raise unwritten(error, target) from error
    _write_index(target.folder, shards)
    return _record(merge, plan, engine, shards)


def unwritten(error: OSError, target: Target) -> RunFailed:
    """What a failed write means to who gave the command."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(
            f"the disk of '{target.folder.parent}' is full", "make room and give the same command: it goes on"
        )
    where = f" ({error.filename})" if error.filename else ""
    return RunFailed(
        f"'{target.out}' cannot be written: {error.strerror or error}{where}",
        "the same command goes on, once that is mended: files that are whole are kept",
    )


class _Work:
    """Writes shards."""

    def __init__(self, merge: Merge, plan: Plan, engine: Engine, whole: Source | None, tell: Tell) -> None:
        self.merge, self.plan, self.engine, self.whole, self.tell = merge, plan, engine, whole, tell
        self.bits = merge.parts(plan.models.names)
        self.averages = Engine(Average(), plan.models, plan.averaged, threads=engine.threads)
        self.averages.prepare()
        self.done, self.total = 0, sum(o.info.numel for o in plan.outputs)
        self._count = threading.Lock()

    def write(self, group: Shard, folder: Path) -> list[SafetensorsWriter]:
        """All tensors of a shard; the files are not finished yet."""
        main = SafetensorsWriter(folder / group.name, {o.name: o.info for o in group.outputs}, {"format": "pt"})
        merged = [o for o in group.outputs if o.action == "merge" and o.origin == o.name]
        sides = {
            part: SafetensorsWriter(
                folder / file,
                {o.name: TensorInfo((self._code_bytes(part, o),), torch.uint8) for o in merged},
                {"bits": str(self.bits[part])},
            )
            for part, file in group.parts.items()
        }
        places: dict[str, list[Output]] = {}
        for output in group.outputs:
            places.setdefault(output.origin, []).append(output)

        def place(piece: Piece, values: Tensor | Split) -> None:
            if isinstance(values, Split):
                for part, codes in values.parts.items():
                    sides[part].put(piece.name, piece.start * self.bits[part] // 8, codes)
                values = values.shared
            flat = values.reshape(-1)
            for output in places[piece.name]:
                stored = flat.to(output.info.dtype)
                if not finite(flat) or (stored.dtype != flat.dtype and not finite(stored.float())):
                    self.engine.blame(piece)
                main.put(output.name, piece.start, stored)
            self._progress(piece.numel)

        try:
            for engine, action in ((self.engine, "merge"), (self.averages, "average")):
                names = {o.origin for o in group.outputs if o.action == action}
                make = engine.merged if self.whole is None or action != "merge" else self._taken
                pieces = [p for p in engine.pieces() if p.name in names]
                engine.visit(pieces, lambda p, make=make: place(p, make(p)), copies=self.merge.copies)
            self._copy(group, main)
        except BaseException:
            for writer in (main, *sides.values()):
                writer.abandon()
            raise
        return [main, *sides.values()]

    def _code_bytes(self, part: str, output: Output) -> int:
        return self.merge.code_bytes(part, output.info.shape, self.plan.models.names)

    def _taken(self, piece: Piece) -> Tensor:
        assert self.whole is not None
        return self.whole.read(piece.name, piece.start, piece.stop)

    def _copy(self, group: Shard, main: SafetensorsWriter) -> None:
        source = self.plan.models.base or next(iter(self.plan.models.experts.values()))
        for output in group.outputs:
            if output.action != "copy":
                continue
            for at in range(0, output.info.numel, COPY):
                values = source.read(output.origin, at, min(at + COPY, output.info.numel))
                main.put(output.name, at, values.to(output.info.dtype))
            self._progress(output.info.numel)

    def _progress(self, count: int) -> None:
        with self._count:
            self.done += count
            self.tell(self.done, self.total)


def _write_index(folder: Path, shards: list[Shard]) -> None:
    if len(shards) == 1:
        return
    weight_map = {o.name: s.name for s in shards for o in s.outputs}
    size = sum(o.info.bytes for s in shards for o in s.outputs)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _record(merge: Merge, plan: Plan, engine: Engine, shards: list[Shard]) -> dict[str, Any]:
    counts = {a: sum(o.action == a for o in plan.outputs) for a in ("merge", "average", "copy")}
    record: dict[str, Any] = {"tensors": counts, "elements": engine.total, "found": engine.states, "notes": plan.notes}
    if merge.decoder:
        record["tasks"] = {
            "decoder": merge.decoder,
            "experts": list(plan.models.names),
            "bits": merge.parts(plan.models.names),
            "files": {part: [s.parts[part] for s in shards] for part in merge.parts(plan.models.names)},
            "scalars": {n: merge.scalars(n, plan.models.names, engine.state) for n in plan.merged},
        }
    return record


def describe_outputs(plan: Plan) -> str:
    """One line about what is merged and what is not."""
    kinds = {a: [o.name for o in plan.outputs if o.action == a] for a in ("merge", "average", "copy")}
    words = {"merge": "merged", "average": "averaged", "copy": "copied"}
    return ", ".join(f"{len(names)} {words[a]} ({some(names, 1)})" for a, names in kinds.items() if names)
