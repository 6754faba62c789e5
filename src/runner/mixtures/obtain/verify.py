"""Looking at a data set: how many examples there are, what values they have, and what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.errors import Problem, UserError
from runner.mixtures.base import Dataset, Mixture, Split
from runner.mixtures.published import Preparable, Progress, Published

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MISSING_INT = -100
SHOWN = 5
"""Files that cannot be read, of which more are only counted."""


@dataclass
class Values:
    """What was seen of one input or target.

    Attributes:
        low, high: of its values. classes: those that occurred, of class maps and labels.
        unlabelled: numbers without a label. total: all of them. absent: examples without this target at all.
    """

    low: float = np.inf
    high: float = -np.inf
    classes: set[int] = field(default_factory=set)
    unlabelled: int = 0
    total: int = 0
    absent: int = 0

    def see(self, array: np.ndarray, classes: bool = True) -> None:
        """Add one example's; whole numbers are `classes`, or just numbers."""
        whole = array.dtype.kind in "iu"
        known = array[array != MISSING_INT] if whole else array[~np.isnan(array)]
        self.total += array.size
        self.unlabelled += array.size - known.size
        if known.size:
            self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
            if whole and classes:
                self.classes.update(np.unique(known).tolist())

    def __str__(self) -> str:
        if self.classes:
            number = len(self.classes)
            return f"{number} class{'es' if number > 1 else ''}, {min(self.classes)} to {max(self.classes)}"
        return f"{self.low:.4g} to {self.high:.4g}" if np.isfinite(self.low) else "nothing"


@dataclass
class Part:
    """What was seen of one data set's split: `read` of its `count` examples."""

    split: str
    name: str
    count: int
    read: int = 0
    values: dict[str, Values] = field(default_factory=dict)


@dataclass
class Report:
    """What there is and what is wrong.

    Attributes:
        counts: published split → (examples there are, as published or None).
        parts: one per data set and split. problems: in counts, values, and files.
    """

    counts: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def verify(mixture: Mixture, sample: int | None, progress: Progress) -> Report:
    """Count examples and read some of them.

    Args:
        sample: examples of each data set and split, evenly spread; None reads all.

    Raises:
        UserError: the data is not there.
    """
    problems = mixture.check()
    if problems:
        raise UserError(problems)
    report = Report()
    published = mixture.published if isinstance(mixture, Preparable) else Published(home="")
    try:
        mixture.setup(None)
        if isinstance(mixture, Preparable):
            for split, count in mixture.count().items():
                expected = published.counts.get(split)
                report.counts[split] = count, expected
                if expected is not None and count != expected:
                    what = f"the split '{split}' has {count:,} examples, and {expected:,} were published"
                    report.problems.append(Problem(what, "a part of it is fine for a try, but not for a comparison"))
        for split in SPLITS:
            for dataset in mixture.datasets(split).values():
                report.parts.append(_look(dataset, split, sample, report, progress))
    except UserError as error:
        report.problems += error.problems
    for part in report.parts:
        report.problems += _implausible(part, published)
    return report


def _look(dataset: Dataset, split: str, sample: int | None, report: Report, progress: Progress) -> Part:
    count = len(dataset)
    part = Part(split, dataset.name, count)
    number = count if sample is None else min(sample, count)
    unreadable = 0
    for k, index in enumerate(np.linspace(0, count - 1, number).round().astype(int).tolist()):
        try:
            example = dataset.example(index, None)
        except UserError as error:
            unreadable += 1
            if unreadable <= SHOWN:
                report.problems += error.problems
            continue
        part.read += 1
        for name, array in example.inputs.items():
            part.values.setdefault(name, Values()).see(np.asarray(array), classes=False)
        for task in dataset.tasks:
            values = part.values.setdefault(task, Values())
            if task in example.targets:
                values.see(example.targets[task])
            else:
                values.absent += 1
        progress(f"{dataset.name} {split}", k + 1, number)
    if unreadable > SHOWN:
        what = f"{unreadable - SHOWN} more examples of {dataset.name} {split} cannot be read"
        report.problems.append(Problem(what, "unpack or download the data again"))
    return part


def _implausible(part: Part, published: Published) -> list[Problem]:
    """Values that nobody has published."""
    found = []
    for name, values in part.values.items():
        where = f"'{name}' of {part.name} {part.split}"
        low, high = published.ranges.get(name, (-np.inf, np.inf))
        if np.isfinite(values.low) and (values.low < low or values.high > high):
            what = f"{where} is {values.low:.4g} to {values.high:.4g}, outside {low:g} to {high:g}"
            found.append(Problem(what, "another unit, or a damaged archive"))
        if part.read and (values.absent == part.read or (values.total and values.unlabelled == values.total)):
            found.append(Problem(f"{where} has no label in any of {part.read} examples", "unpack the whole archive"))
    return found


def rows(report: Report) -> list[list[str]]:
    """A table: split, examples, how many were read, what of them, its values, and the share without a label."""
    lines = []
    for part in report.parts:
        first = [part.split if part.name == "" else f"{part.name} {part.split}", f"{part.count:,}", f"{part.read:,}"]
        for name, values in part.values.items():
            share = f"{values.unlabelled / values.total:.1%}" if values.unlabelled else ""
            gone = f"{values.absent} without" if values.absent else ""
            lines.append([*first, name, str(values), " ".join(filter(None, [share, gone]))])
            first = ["", "", ""]
    return lines


def as_json(report: Report) -> dict[str, Any]:
    """For programs."""
    return {
        "counts": {split: {"there": n, "published": expected} for split, (n, expected) in report.counts.items()},
        "splits": [
            {
                "split": part.split,
                "data_set": part.name,
                "examples": part.count,
                "read": part.read,
                "values": {
                    name: {
                        "low": v.low if np.isfinite(v.low) else None,
                        "high": v.high if np.isfinite(v.high) else None,
                        "classes": sorted(v.classes),
                        "unlabelled": v.unlabelled / v.total if v.total else None,
                        "absent": v.absent,
                    }
                    for name, v in part.values.items()
                },
            }
            for part in report.parts
        ],
        "problems": [problem.what for problem in report.problems],
    }
