"""Steps whose loss or gradient is NaN or infinite: stop, or skip and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import RunFailed
from runner.files import write_json
from runner.training.processes import Processes
from runner.types import Batch
from runner.weighting.step import NonFiniteLoss


def report_nonfinite(
    run_dir: Path, step: int, error: NonFiniteLoss, micro_batches: list[Batch], processes: Processes
) -> None:
    """Write `nonfinite.json`: step, tasks, their losses, and the ids of every example of the step, over all ranks."""
    ids = [[group.name, example] for batch in micro_batches for group in batch for example in group.ids]
    everywhere = processes.gather(ids) if processes.count > 1 else ids
    if not processes.main:
        return
    by_set: dict[str, list[str]] = {}
    for name, example in everywhere:
        by_set.setdefault(name, []).append(example)
    write_json(
        run_dir / "nonfinite.json",
        {
            "step": step + 1,
            "losses": {k: str(v) for k, v in error.losses.items()},
            "tasks": error.tasks,
            "examples": by_set,
        },
    )


class NonFinitePolicy:
    """Decides what happens, see `trainer.nonfinite`; its counts are part of the checkpoint.

    Args:
        stop: whether the first such step ends the run.
        run_dir: for messages. notice: tells the person who watches, once per text.
    """

    LIMIT = 100
    """Skipped steps in a row after which there is nothing left to train."""

    def __init__(self, stop: bool, run_dir: Path, notice: Callable[[str], None]) -> None:
        self.stop = stop
        self.run_dir = run_dir
        self.notice = notice
        self.skipped, self.in_a_row = 0, 0

    def broken(self, what: str, hint: str) -> None:
        """A step is not finite: it is skipped, or the run ends.

        Raises:
            RunFailed: steps are not skipped, or `LIMIT` of them were in a row.
        """
        see = f"runner status {self.run_dir}"
        if self.stop:
            raise RunFailed(what, f"the last checkpoint is intact: {hint}, or set trainer.nonfinite=skip", see)
        self.skipped += 1
        self.in_a_row += 1
        self.notice(f"{what}: steps like this are skipped, as trainer.nonfinite=skip says")
        if self.in_a_row == self.LIMIT:
            raise RunFailed(f"{what}, and {self.LIMIT} steps in a row were skipped", hint, see)

    def whole(self) -> None:
        """A step was taken."""
        self.in_a_row = 0
