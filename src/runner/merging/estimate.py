"""`runner merge --dry-run`: tensors, bytes, and what time and memory it will take, from a small measured sample."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from runner.errors import UserError
from runner.files import size_in_words
from runner.merging.base import Merge, WholeModel
from runner.merging.blocks import Split
from runner.merging.engine import Engine, Piece
from runner.merging.plan import Plan
from runner.merging.stream import bytes_of, layout

SAMPLE_S = 1.0
"""So long pieces are merged to see how fast that goes."""
WRITE = 1e9
"""Bytes per second that a plain disk takes."""
PROCESS = 250e6
"""Memory of python and torch themselves, in bytes."""


def print_plan(merge: Merge, plan: Plan, config: dict[str, Any], *, threads: int, budget: int) -> None:
    """Print what would happen; write nothing."""
    names = plan.models.names
    rows = [("strategy", type(merge).__name__), ("experts", f"{len(names)}: {', '.join(names)}")]
    rows.append(
        ("base", plan.models.base.folder.as_posix() if plan.models.base and plan.models.base.folder else "none")
    )
    counts = {a: [o for o in plan.outputs if o.action == a] for a in ("merge", "average", "copy")}
    words = {"merge": "merged", "average": "averaged", "copy": "copied from the base"}
    shown = "; ".join(
        f"{len(found)} {words[a]} ({sum(o.info.numel for o in found):,} values)" for a, found in counts.items() if found
    )
    rows.append(("tensors", shown))
    shards = layout(merge, plan, round(config["shard_size"] * 1e9))
    size = sum(bytes_of(merge, s, names) for s in shards)
    times = {1: "once", 2: "twice"}.get(merge.passes(), f"{merge.passes()} times")
    rows.append(("reads", f"{size_in_words(plan.bytes_in(merge))}, every input {times}"))
    rows.append(("writes", f"{size_in_words(size)} in {sum(len(s.files) for s in shards)} files, to {config['out']}"))
    folder = Path(config["out"]).parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    rows.append(("disk", f"{size_in_words(free)} free" + ("" if free > size else ": NOT ENOUGH")))
    rows.append(("memory", f"about {size_in_words(memory(merge, plan, threads, budget))}"))
    rows.append(("time", _time(merge, plan, threads, size)))
    for word, text in rows:
        print(f"{word:<9} {text}")
    for note in plan.notes:
        print(f"note: {note}")
    if free <= size:
        raise UserError(f"the disk of '{folder}' has no room for the result", "make room, or choose another out=DIR")


def memory(merge: Merge, plan: Plan, threads: int, budget: int) -> float:
    """Bytes of memory at most, files that are mapped not counted."""
    engine = Engine(merge, plan.models, plan.merged, threads=threads)
    if isinstance(merge, WholeModel):
        return PROCESS + 4.0 * engine.total * (len(plan.models.names) + merge.copies)
    per_value = 4.0 * (len(plan.models.names) + merge.copies)
    largest = max((p.numel for p in engine.pieces()), default=0) * per_value
    return PROCESS + min(max(budget, largest), largest * threads)


def _time(merge: Merge, plan: Plan, threads: int, size: int) -> str:
    """A range: the measured speed of a few pieces, and twice that."""
    if isinstance(merge, WholeModel) or merge.needs != "weights":
        return "not estimated: this strategy works on whole models"
    engine = Engine(merge, plan.models, plan.merged, threads=1)
    pieces = sorted(engine.pieces(), key=lambda p: p.numel)
    chosen = [pieces[i * (len(pieces) - 1) // 8] for i in range(9)] if engine.unit == "element" else pieces[-3:-1]
    began, values = time.perf_counter(), 0
    for piece in chosen:
        values += _once(engine, merge, piece)
        if time.perf_counter() - began > SAMPLE_S:
            break
    rate = values / max(time.perf_counter() - began, 1e-6)
    seconds = engine.total * merge.passes() / rate / threads + size / WRITE + 2
    return f"about {seconds:.0f} to {2 * seconds:.0f} s with {threads} threads"


def _once(engine: Engine, merge: Merge, piece: Piece) -> int:
    """Merge a piece; strategies that must look at everything first are taken for a pass over the task vectors."""
    block = engine.block(piece)
    if type(merge).survey is Merge.survey and not merge.pre:
        merged = merge.merge(block, None)
        return (merged.shared if isinstance(merged, Split) else merged).numel()
    total = torch.stack([block.delta(t).abs() for t in range(len(block))]).sum(0)
    return total.numel()
