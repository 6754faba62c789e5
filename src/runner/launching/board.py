"""What a person sees of a sweep: a live table of its jobs on a terminal, a line for every event elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.files import read_json
from runner.launching.schedule import NeededJob, SweepJob
from runner.tracking.table import duration, number

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

AnyJob = SweepJob | NeededJob


class LineBoard:
    """A line when a job starts and when it ends.

    Args:
        varied: number of a job → what sets it apart from the others.
    """

    def __init__(self, varied: dict[int, str]) -> None:
        self.varied = varied
        self._started: set[int] = set()
        self._elsewhere: set[int] = set()
        self._total = 0
        self._done = 0

    def update(self, jobs: Sequence[AnyJob]) -> None:
        """Tell what has started since the last call."""
        self._total = len(jobs)
        for job in jobs:
            if job.running and id(job) not in self._started:
                self._started.add(id(job))
                self.text(f"{job.label} started{_colon(self.words(job))}")
            if job.elsewhere and not job.ended and id(job) not in self._elsewhere:
                self._elsewhere.add(id(job))
                self.text(f"{job.label} runs in another process{_colon(self.words(job))}")

    def ended(self, job: AnyJob) -> None:
        """Tell how a job ended."""
        self._done += job.state == "COMPLETED"
        if job.started is None and job.state == "STOPPED":  # withdrawn
            return
        took = f" in {duration(job.ended_at - job.started)}" if job.started is not None and job.ended_at else ""
        if job.state == "COMPLETED":
            shown = headline(job.path) or self.words(job)
            what = f"completed{took}"
            if job.skipped:
                what = "was completed by another process" if id(job) in self._elsewhere else "was there already"
            self.text(f"{job.label} {what} ({self._done} of {self._total}){_colon(shown)}")
        else:
            self.text(f"{job.label} {job.state.lower()}{took}{_colon(job.message)}")

    def message(self, text: str) -> None:
        """A line to read."""
        self.text(text)

    def words(self, job: AnyJob) -> str:
        """What sets a job apart."""
        return self.varied.get(job.entry.number, "") if isinstance(job, SweepJob) else ""

    def text(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def close(self) -> None:
        """The sweep is over."""


class LiveBoard(LineBoard):
    """A table of the jobs, redrawn in place; what has ended is summed up when there are more jobs than lines."""

    def __init__(self, varied: dict[int, str]) -> None:
        super().__init__(varied)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._began = time.monotonic()
        self._jobs: Sequence[AnyJob] = []
        self._drawn = 0.0
        self._steps: dict[Path, tuple[float, int]] = {}
        self._live: Live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def update(self, jobs: Sequence[AnyJob]) -> None:
        """Redraw, twice a second at most."""
        self._jobs = jobs
        if time.monotonic() - self._drawn > 0.5:
            self._draw()

    def ended(self, job: AnyJob) -> None:
        """Redraw at once; failures also stay above the table."""
        if job.state == "FAILED":
            self.text(f"{job.label} failed{_colon(job.message)}")
        self._draw()

    def text(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the table as it is."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._live.update(self.table(self._console.height - 4), refresh=True)

    def table(self, lines: int) -> Table:
        """The jobs that fit into so many lines: those that run first, then failed, waiting and completed ones."""
        from rich.table import Table
        from rich.text import Text

        order = {"RUNNING": 0, "FAILED": 1, "STOPPED": 2, "WAITING": 3, "COMPLETED": 4}
        place = {id(job): n for n, job in enumerate(self._jobs)}
        shown = sorted(self._jobs, key=lambda job: (order[job.state], place[id(job)]))[: max(3, lines)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=False, title_justify="left")
        for name, wide in (("job", False), ("state", False), ("step", False), ("time", False), ("", True)):
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if wide else None)
        for job in sorted(shown, key=lambda job: place[id(job)]):
            label = str(job.entry.number) if isinstance(job, SweepJob) else job.label
            state = "elsewhere" if job.elsewhere and not job.ended else job.state.lower()
            took = (job.ended_at or time.monotonic()) - job.started if job.started is not None else None
            words = job.message if job.state == "FAILED" else self.words(job)
            if job.state == "COMPLETED" and (numbers := headline(job.path)):
                words = f"{words}  {numbers}"
            row = (label, state, self._step(job), duration(took) if took is not None else "", words)
            style = {"failed": "red", "completed": "green", "running": "bold", "waiting": "dim"}.get(state, "")
            table.add_row(*(Text(cell) for cell in row), style=style)
        table.caption, table.caption_justify = Text(self._summary(len(self._jobs) - len(shown))), "left"
        return table

    def _summary(self, hidden: int) -> str:
        states = [job.state for job in self._jobs]
        counts = ", ".join(
            f"{states.count(state)} {state.lower()}"
            for state in ("RUNNING", "WAITING", "COMPLETED", "FAILED", "STOPPED")
            if state in states
        )
        took = [j.ended_at - j.started for j in self._jobs if j.state == "COMPLETED" and j.started and j.ended_at]
        open_jobs, at_a_time = sum(s in ("WAITING", "RUNNING") for s in states), max(1, states.count("RUNNING"))
        rest = ""
        if took and open_jobs:
            spent = sum(time.monotonic() - j.started for j in self._jobs if j.state == "RUNNING" and j.started)
            rest = f", about {duration(max(0.0, (open_jobs * sum(took) / len(took) - spent) / at_a_time))} left"
        more = f"{hidden} more not shown; " if hidden else ""
        return f"{more}{counts}; {duration(time.monotonic() - self._began)}{rest}"

    def _step(self, job: AnyJob) -> str:
        if not (job.running or job.state == "COMPLETED"):
            return ""
        total = (job.config.get("trainer") or {}).get("max_steps")
        return f"{last_step(job.path)}{f'/{total}' if total else ''}"


def make_board(varied: dict[int, str]) -> LineBoard:
    """A live table on a terminal, lines elsewhere."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return LiveBoard(varied)
    return LineBoard(varied)


def last_step(run: Path) -> int:
    """The newest step in metrics.jsonl, from the end of the file."""
    with contextlib.suppress(OSError):
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.path.getsize(run / "metrics.jsonl") - 4096))
            for line in reversed(file.read().splitlines()):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    return int(json.loads(line)["step"])
    return 0


def headline(run: Path) -> str:
    """Each task's headline metric of a completed run: `segmentation miou 0.281, depth rmse 0.543`."""
    try:
        result: dict[str, Any] = read_json(run / "result.json")
        headlines = result.get("headline") or {}
        words = []
        for task, metrics in (result.get("tasks") or {}).items():
            name = headlines.get(task, next(iter(metrics), ""))
            if name in metrics:
                words.append(f"{task} {name} {number(metrics[name])}")
        return ", ".join(words)
    except (OSError, ValueError):
        return ""


def _colon(text: str) -> str:
    return f": {text}" if text else ""
