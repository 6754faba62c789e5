"""Checkpoints that exist whole or not at all.

    checkpoints/step-00002000/
      model.safetensors    the model's parameters and buffers
      ema.safetensors      averaged weights, where they are kept
      training.pt          optimizer, scheduler, scaler, weighting (read with weights_only=True)
      rng-0.pt …           every random generator of every rank
      state.json           step, sampler position, best value, running averages, fingerprint of the vocabulary
      DONE                 size and CRC-32 of every file; written last, then the folder gets its name

A folder without DONE, or one whose files do not match it, does not count: the one before is used.
"""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from runner.errors import RunFailed, UserError
from runner.files import fsync_directory, fsync_file, read_json, replace_symlink, write_json
from runner.randomness import rng_state
from runner.specs import InputSpec

PREFIX = "step-"


def folder_name(step: int) -> str:
    """`step-00002000`."""
    return f"{PREFIX}{step:08d}"


@dataclass
class Loaded:
    """A checkpoint read back; tensors are on the CPU."""

    path: Path
    state: dict[str, Any]
    training: dict[str, Any]
    rng: dict[str, Any] | None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        root: the run's `checkpoints` folder.
        keep: how many of the newest to keep; the best is kept as well.
        rank, barrier: of this process; with several, all must call `save` together.
    """

    def __init__(self, root: Path, *, keep: int = 2, rank: int = 0, barrier: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self.keep = keep
        self.rank = rank
        self.barrier = barrier

    # ---- writing --------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        ema: nn.Module | None,
        training: Mapping[str, Any],
        state: Mapping[str, Any],
        best_step: int | None,
    ) -> Path:
        """Write the checkpoint of `step`, point `latest` (and `best`) at it, and drop old ones.

        Raises:
            RunFailed: the disk is full or not writable; earlier checkpoints are untouched.
        """
        final = self.root / folder_name(step)
        temporary = self.root / f".writing-{folder_name(step)}"
        if self.rank == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            if not is_whole(final):
                shutil.rmtree(final, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
            _writing(self.root, temporary.mkdir)
        self.barrier()
        _writing(self.root, lambda: torch.save(rng_state(), temporary / f"rng-{self.rank}.pt"), temporary)
        self.barrier()
        if self.rank == 0 and not final.exists():
            _writing(self.root, lambda: self._write(temporary, final, model, ema, training, state), temporary)
        elif self.rank == 0:
            shutil.rmtree(temporary)
        if self.rank == 0:
            _writing(self.root, lambda: self.link(step, best_step))
            self._drop_old(best_step)
        self.barrier()
        return final

    def _write(
        self,
        temporary: Path,
        final: Path,
        model: nn.Module,
        ema: nn.Module | None,
        training: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        save_weights(model, temporary / "model.safetensors")
        if ema is not None:
            save_weights(ema, temporary / "ema.safetensors")
        torch.save(dict(training), temporary / "training.pt")
        write_json(temporary / "state.json", dict(state))
        files = sorted(p for p in temporary.iterdir())
        for path in files:
            fsync_file(path)
        write_json(temporary / "DONE", {p.name: [p.stat().st_size, crc32(p)] for p in files})
        temporary.rename(final)
        fsync_directory(self.root)

    def link(self, step: int, best_step: int | None) -> None:
        """Point `latest` and `best` at their checkpoints."""
        replace_symlink(self.root / "latest", folder_name(step))
        if best_step is not None:
            replace_symlink(self.root / "best", folder_name(best_step))

    def _drop_old(self, best_step: int | None) -> None:
        for path in self.folders()[: -self.keep]:
            if best_step is None or path.name != folder_name(best_step):
                # DONE goes first: a half-deleted checkpoint must not look whole.
                (path / "DONE").unlink(missing_ok=True)
                shutil.rmtree(path)

    # ---- reading --------------------------------------------------------------------------------------------------

    def folders(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.name.startswith(PREFIX) and (p / "DONE").exists())

    def newest(self) -> Path | None:
        """The newest whole checkpoint; damaged ones are passed over with a warning."""
        for path in reversed(self.folders()):
            if is_whole(path):
                return path
            warnings.warn(f"checkpoint {path} is damaged and was passed over", stacklevel=2)
        return None

    def find(self, which: str) -> Path:
        """The checkpoint called "latest", "best" or a step number.

        Raises:
            UserError: there is no such whole checkpoint.
        """
        if which == "latest":
            path = self.newest()
        elif which == "best":
            link = self.root / "best"
            path = link.resolve() if link.exists() else self.newest()
        else:
            path = self.root / (folder_name(int(which)) if which.isdigit() else which)
        if path is None or not is_whole(path):
            names = ", ".join(p.name for p in self.folders() if is_whole(p)) or "none"
            raise UserError(f"there is no whole checkpoint '{which}' in {self.root}", f"whole checkpoints: {names}")
        return path

    def load(self, path: Path) -> Loaded:
        """Read all but the weights (see `load_weights`)."""
        own_rng = path / f"rng-{self.rank}.pt"
        return Loaded(
            path,
            read_json(path / "state.json"),
            torch.load(path / "training.pt", map_location="cpu", weights_only=True),
            torch.load(own_rng, map_location="cpu", weights_only=True) if own_rng.exists() else None,
        )


def save_weights(module: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors; tensors that share memory are written once and stay shared when read."""
    safetensors.torch.save_model(module, str(path))


def load_weights(module: nn.Module, path: Path) -> None:
    """Read `save_weights`; raises UserError when names or shapes do not fit the module."""
    try:
        safetensors.torch.load_model(module, str(path), strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the model of this configuration", str(error)) from error


def check_inputs(checkpoint: Path, inputs: InputSpec) -> None:
    """Refuse weights that were trained on inputs made with another vocabulary, or with other statistics of columns.

    Folders that say nothing about it (weights from elsewhere, mixtures that learn nothing) pass.

    Raises:
        UserError: the mixture makes other inputs now than when the checkpoint was written.
    """
    state = checkpoint / "state.json"
    trained_with = read_json(state).get("inputs", "") if state.is_file() else ""
    if trained_with and inputs.learned and trained_with != inputs.learned:
        what = "another vocabulary" if inputs.kind == "text" else "other statistics of the columns"
        raise UserError(
            f"the weights in {checkpoint} were trained with {what} ({trained_with}) than the mixture learns from "
            f"its training data now ({inputs.learned})",
            "the data, the mixture's keys or the version of the library that learned it have changed since (git.diff, "
            "config.yaml and run.json of its run say what they were)",
        )


def is_whole(path: Path) -> bool:
    """Whether DONE is there and every file has the size and checksum that it states."""
    try:
        listed = json.loads((path / "DONE").read_text(encoding="utf-8"))
        return all(
            (path / name).stat().st_size == size and crc32(path / name) == crc for name, (size, crc) in listed.items()
        )
    except (OSError, ValueError):
        return False


def crc32(path: Path) -> int:
    """Checksum of a file's bytes."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _writing(root: Path, write: Callable[[], Any], temporary: Path | None = None) -> None:
    """Run `write`; on failure clean up and say what to do. torch and safetensors hide ENOSPC behind own errors."""
    try:
        write()
    except Exception as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(root).free
        reason = "the disk is full" if "space left" in str(error) or free < 1 << 20 else str(error)
        raise RunFailed(
            f"the checkpoint could not be written to {root}: {reason} ({free / 2**20:.0f} MiB free)",
            "earlier checkpoints are untouched: free some space, then continue the run",
            f"runner resume {shlex.quote(str(root.parent))}",
        ) from error
