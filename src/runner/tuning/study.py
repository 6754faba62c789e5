"""Optuna's side: the journal, samplers and pruners. Everything that a kill could leave behind is mended on opening."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalStorage

from runner.errors import UserError
from runner.launching import locks

JOURNAL = "study.jsonl"


class _NoLock:
    """The tune directory is locked as a whole; Optuna's own lock file would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def hold(folder: Path) -> IO[str]:
    """The lock on a tune directory; it goes with the process, however that ends.

    Raises:
        UserError: another `runner tune` works in it.
    """
    file = locks.hold(folder / ".front")
    if file is None:
        raise UserError(f"another process is tuning in {folder}", "wait for it, or stop it", f"runner status {folder}")
    return file


def open_study(folder: Path, name: str, objectives: int, pruner: BasePruner) -> optuna.Study:
    """The study of a directory that this process holds; made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path = folder / JOURNAL
    mend(path)
    backend = JournalFileBackend(str(path), lock_obj=_NoLock())  # type: ignore[arg-type]
    return optuna.create_study(
        storage=JournalStorage(backend),
        study_name=name,
        directions=["minimize"] * objectives,
        load_if_exists=True,
        sampler=RandomSampler(seed=0),  # replaced before every trial
        pruner=pruner,
    )


def mend(path: Path) -> None:
    """Cut off a last line that a kill has torn: Optuna would append to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def make_sampler(name: str, seed: int, number: int, startup: int) -> BaseSampler:
    """The sampler of trial `number`: its chance depends on the seed and the number only, not on when it was made."""
    own = (seed * 1_000_003 + number) % 2**32
    if name == "tpe":
        return TPESampler(seed=own, n_startup_trials=startup)
    if name == "nsga2":
        return NSGAIISampler(seed=own, population_size=max(4, startup))
    return RandomSampler(seed=own)  # random, and grid, whose points are given


def make_pruner(name: str, startup: int, config: Mapping[str, Any]) -> BasePruner:
    """The pruner; resources are training steps.

    Args:
        name: "none", "median" or "hyperband".
        startup: random trials at the beginning; the median waits for half as many completed ones.
        config: of a trial.
    """
    trainer = config["trainer"]
    if name == "median":
        return MedianPruner(n_startup_trials=max(1, startup // 2), n_warmup_steps=0)
    if name == "hyperband":
        longest = trainer["max_steps"] or "auto"
        return HyperbandPruner(min_resource=trainer["eval_every"] or 1, max_resource=longest, reduction_factor=3)
    return NopPruner()
