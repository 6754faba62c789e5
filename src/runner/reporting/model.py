"""What a report is made of: tables of rows, their columns, and everything that is known about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from runner.reporting.read import Found, Run
from runner.reporting.settings import Columns, Setting
from runner.reporting.significance import Samples, Spread, Verdict

Kind = Literal["setting", "baseline", "published", "between"]
"""What a row is: runs, single-task runs, quoted numbers, or that between which merges lie: base and experts."""


@dataclass(frozen=True)
class Metric:
    """A column of results.

    Attributes:
        better: "" where the direction is not known.
        headline: whether it stands for its task.
    """

    task: str
    name: str
    better: Literal["up", "down", ""]
    headline: bool

    @property
    def key(self) -> str:
        """`task/metric`."""
        return f"{self.task}/{self.name}"


@dataclass
class Row:
    """One row of a table.

    Attributes:
        cells: column of parameters → value. samples: column key → seed → value; Δm's keys are `Δm/definition`.
        spreads, verdicts: by the same keys. rank: mean rank over the headline metrics.
    """

    kind: Kind
    label: str
    cells: dict[str, str]
    samples: dict[str, Samples]
    n: int
    setting: Setting | None = None
    runs: list[Run] = field(default_factory=list)
    spreads: dict[str, Spread] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    rank: float = math.nan


@dataclass
class Table:
    """Runs that can be compared: the same data, tasks and split.

    Attributes:
        tasks, split, mixture: what they share. rows: baselines and published numbers first, then the best first.
        metrics: every metric; `definitions`: the Δm definitions that have a value. columns: see `Columns`.
        baseline: what Δm is measured against, in words; empty without one. zeros: the baselines, each with its name.
        unfinished: runs of these settings that are not completed. repeated: how many completed runs were passed over.
        loose: settings whose baseline was trained under other settings. undefined: "task/metric" without a Δm.
    """

    tasks: list[str]
    split: str
    mixture: str
    rows: list[Row]
    metrics: list[Metric]
    columns: Columns
    definitions: list[str] = field(default_factory=list)
    baseline: str = ""
    unfinished: list[Run] = field(default_factory=list)
    repeated: int = 0
    loose: list[str] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`segmentation, depth on rooms (test)`."""
        return f"{', '.join(self.tasks)} on {self.mixture} ({self.split})" if self.mixture else ", ".join(self.tasks)

    @property
    def headlines(self) -> list[Metric]:
        """One metric per task."""
        return [metric for metric in self.metrics if metric.headline]


@dataclass
class Report:
    """Everything that a report says.

    `broken` are directories that cannot be read, `waiting` jobs of a sweep that have none yet.
    """

    tables: list[Table]
    found: Found
    broken: list[Run]
    waiting: list[Run]
    delta_m: str
