"""One task's weights out of a merge that stores codes per task: `models=[OUT@TASK]`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runner.errors import UserError, suggest
from runner.merging.decoders import DECODERS, decode, read_by, unpacked
from runner.merging.disk import SafetensorsSource
from runner.merging.packing import GROUP, RAW, packed_bytes
from runner.merging.sources import Source, TensorInfo


class RestoredSource(Source):
    """The weights of one expert's task, decoded as they are read.

    Args:
        folder: the output of a per-task merge.
        task: the expert.
        label: for messages.
        base: the merge's base; default: where it was.

    Raises:
        UserError: the folder holds no such merge, or no such task.
    """

    def __init__(self, folder: Path, task: str, label: str, base: Source | None) -> None:
        from runner.merging.open import open_source

        self.label, self.folder, self.task = label, folder, task
        try:
            record = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
            tasks = record.get("tasks") or {}
        except (OSError, ValueError, AttributeError) as error:
            own = "a run keeps them in its checkpoint; merge its experts with `runner merge` to have them in a folder"
            raise UserError(
                f"'{folder}' is no merge that stores tasks: it has no sound merge.json",
                own if (folder / "run.json").is_file() else "",
            ) from error
        if tasks.get("decoder") not in DECODERS:
            raise UserError(f"'{folder}' stores one model for all tasks", f"use it as it is: {folder}")
        if task not in tasks["experts"]:
            raise UserError(f"'{folder}' has no task '{task}'", suggest(task, tasks["experts"]))
        self._decoder, self._scalars = tasks["decoder"], tasks["scalars"]
        self._bits = {part: bits for part, bits in tasks["bits"].items() if read_by(part, task)}
        self.shared = open_source(folder, label)
        self._codes = {p: SafetensorsSource([folder / f for f in tasks["files"][p]], label) for p in self._bits}
        stored = record["config"].get("base")
        if base is None and stored is not None:
            base = open_source(Path(stored), "base")
        self.base = base
        self.files = [f for s in (self.shared, *self._codes.values()) for f in getattr(s, "files", ())]

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.shared.tensors()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        if name not in self._scalars:
            return self.shared.read(name, start, stop)
        stop = self.tensors()[name].numel if stop is None else stop
        first = start // GROUP * GROUP  # codes are packed in groups
        shared = self.shared.read(name, first, stop).float()
        base = torch.zeros_like(shared) if self.base is None else self.base.read(name, first, stop).float()
        codes = {}
        shape = self.tensors()[name].shape
        for part, bits in self._bits.items():
            last = None if bits == RAW else packed_bytes(stop, bits)
            packed = self._codes[part].read(name, first // GROUP * bits, last)
            codes[part] = unpacked(packed, bits, shape, first, stop)
        values = decode(self._decoder, self.task, base, shared, codes, self._scalars[name])
        return values[start - first :]
