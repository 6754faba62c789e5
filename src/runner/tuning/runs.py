"""Trials as jobs of the pool, and the runs that trials need, such as the experts of a merge: each is trained once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.launching.pool import Job, Pool
from runner.launching.schedule import NeededJob, SweepJob, collect_needs, in_order


class TrialJob(SweepJob):
    """A trial's run: a job of a sweep that has no list of jobs to stand in."""

    def __init__(self, config: Mapping[str, Any], path: Path, argv: list[str], more: Mapping[str, Any]) -> None:
        Job.__init__(self, config, path, argv, more)
        self.number: int = more["trial"]
        self.needs = []

    @property
    def label(self) -> str:
        return f"trial {self.number}"


class Runs:
    """Hands runs to a pool.

    Args:
        pool: made with `runner.launching.schedule.may_start`.
        sweep: name of the search, for run.json.
        tell: prints a line.
    """

    def __init__(self, pool: Pool, sweep: str, tell: Callable[[str], None]) -> None:
        self.pool, self.sweep, self.tell = pool, sweep, tell
        self._needed: dict[str, NeededJob] = {}

    def submit(self, config: dict[str, Any], path: Path, argv: list[str], number: int) -> Job:
        """Hand a trial to the pool, after the runs that it needs and that are not with the pool yet."""
        job = TrialJob(config, path, argv, {"sweep": self.sweep, "trial": number})
        for need in collect_needs([(job, config)], argv):
            self._needed.setdefault(need.need.signature, need)
        for need in self._needed.values():  # the same runs under the names that other trials know them by
            need.after = [self._needed[other.need.signature] for other in need.after]
        job.needs = [self._needed[need.need.signature] for need in job.needs]
        for need in in_order(job.needs):
            if need not in self.pool.jobs:
                self.pool.add(need)
                self.tell(f"trial {number} needs the {need.label}: found, or trained once for all trials")
        self.pool.add(job)
        return job

    def needs(self) -> list[dict[str, Any]]:
        """Entries of sweep.json for the runs that trials of this call need."""
        return [
            {"role": job.need.role, "tasks": list(job.need.tasks), "signature": job.need.signature}
            for job in self._needed.values()
        ]
