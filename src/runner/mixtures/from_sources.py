"""What mixtures of images, texts and tables share: sources, labels, splits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Dataset, Mixture, Split
from runner.mixtures.class_names import names_of
from runner.mixtures.labels import (
    MISSING_INT,
    Label,
    check_positive,
    class_names,
    parse_label,
    read_label,
    read_tags,
)
from runner.mixtures.rows import Opened, Rows, open_source
from runner.mixtures.sources import SPLITS, Source, carve_splits, check_splits, local_files, on_hub, parse_sources


class FromSources(Mixture):
    """A mixture of one data set per entry of `sources`, each with the labels of one or more tasks.

    Args:
        data_root, tasks: see `Mixture`. Labels of tasks that the run does not train are left alone.
        sources: data set → its `source_kind`, as a mapping.
        validation, test: carved from train where a source has no such split: a share or a number.
        split_seed: decides which examples are carved.
        hub: data sets that are not below data_root are read from the Hugging Face hub, where they name an id.
    """

    source_kind: ClassVar[type[Source]] = Source

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        sources: Mapping[str, Any],
        validation: float | int,
        test: float | int | None,
        split_seed: int,
        hub: bool,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.sources, self._problems = parse_sources(self.source_kind, sources)
        if hub:
            self.sources = {name: on_hub(source, data_root) for name, source in self.sources.items()}
        self._shares: dict[Split, float | int | None] = {"validation": validation, "test": test}
        self._split_seed = split_seed
        self._opened: dict[str, Opened] = {}
        self._parts: dict[str, dict[Split, tuple[str, np.ndarray | None]]] = {}
        self.labels: dict[str, dict[str, Label]] = {}
        for name, source in self.sources.items():
            for task in [t for t in self.tasks if t in source.labels]:
                where = f"mixture.sources.{name}.labels.{task}"
                label, problems = parse_label(task, self.tasks[task], source.labels[task], where)
                self._problems += problems
                if label is not None:
                    self.labels.setdefault(name, {})[task] = label
        named = {task for source in self.sources.values() for task in source.labels}
        for task in self.tasks.keys() - named if not self._problems else ():
            what = f"no data set of the mixture has labels for task '{task}' (mixture.tasks.{task})"
            self._problems.append(Problem(what, suggest(task, named)))

    @property
    def needed(self) -> list[str]:
        """Sources that must be there: those with labels for a task of the run."""
        return list(self.labels)

    def check(self) -> list[Problem]:
        problems = list(self._problems)
        for name in self.needed:
            source = self.sources[name]
            if source.path is None:
                continue  # the hub is asked in setup: checking must not wait for a network
            try:
                found = local_files(source, name, self.data_root)
            except UserError as error:
                problems += error.problems
            else:
                problems += check_splits(source, name, found, self._shares["test"])
        return problems

    def rows(self, name: str, split: Split) -> tuple[Rows, np.ndarray]:
        """The source split that holds a split of a data set, and its row numbers there.

        Raises:
            UserError: the data is not what the configuration says.
        """
        if self._problems:
            raise UserError(self._problems)
        source = self.sources[name]
        if name not in self._opened:
            self._opened[name] = open_source(source, name, self.data_root, self._shares["test"])
        opened = self._opened[name]
        if name not in self._parts:
            train = str(source.split_name("train"))
            size = len(opened.split(train))
            if not size:
                raise UserError(f"data set '{name}' has no rows in its split '{train}'")
            self._parts[name] = carve_splits(size, opened.splits, source, name, self._shares, self._split_seed)
        inside, numbers = self._parts[name][split]
        rows = opened.split(inside)
        numbers = np.arange(len(rows)) if numbers is None else numbers
        if not len(numbers):
            raise UserError(f"data set '{name}' has no rows in its split '{inside}'")
        return rows, numbers

    def inspect(self) -> None:
        """Read the labels of every split, so that a wrong one in the test split is not found after the training.

        Raises:
            UserError: everything that is wrong with them, also a task that no training example has a label of.
        """
        problems: list[Problem] = []
        labelled: dict[str, set[str]] = {split: set() for split in SPLITS}
        own: dict[str, set[str]] = {split: set() for split in SPLITS}
        for name in self.labels:
            seen: set[str] = set()
            for split in SPLITS:
                try:
                    rows, numbers = self.rows(name, split)
                    if rows.split in seen:
                        continue
                    seen.add(rows.split)
                    here = self._labelled(name, rows, numbers)
                    self.inspect_inputs(name, rows)
                except UserError as error:
                    problems += error.problems
                    break
                labelled[split] |= here
                own[split] |= self.labels[name].keys()
                if split == "train" and self.labels[name].keys() - here:
                    break  # labels of other splits would be compared with the classes of no label at all
        if not problems:
            problems += [self._no_label(task) for task in sorted(self.tasks.keys() - labelled["train"])]
        if not problems:  # parts that are carved from train may lack rare labels; a split of the data's own must not
            gone = [(split, task) for split in SPLITS[1:] for task in sorted(own[split] - labelled[split])]
            problems += [self._hidden(split, task) for split, task in gone if not self._carved(split, task)]
        if problems:
            raise UserError(problems)

    def inspect_inputs(self, name: str, rows: Rows) -> None:
        """What can be said cheaply about the inputs of a split of a source; a mixture that can, overrides it."""

    def _labelled(self, name: str, rows: Rows, numbers: np.ndarray) -> set[str]:
        """The tasks of which one of the rows has a label."""
        found = set()
        for task, values in self.targets(name, rows).items():
            chosen = values[numbers]
            if not (np.isnan(chosen).all() if chosen.dtype.kind == "f" else (chosen == MISSING_INT).all()):
                found.add(task)
        for task, label in self.labels[name].items():
            if label.form == "tags" and len(read_tags(label, rows, self.classes(name, label))[0]):
                found.add(task)
        return found

    def _carved(self, split: Split, task: str) -> bool:
        """Whether one of the data sets with labels of a task has no such split of its own."""
        names = [name for name, labels in self.labels.items() if task in labels]
        return any(self.rows(name, split)[0].split == self.rows(name, "train")[0].split for name in names)

    def _hidden(self, split: Split, task: str) -> Problem:
        name = next(name for name, labels in self.labels.items() if task in labels)
        where = f"mixture.sources.{name}"
        return Problem(
            f"no example of split '{split}' has a label of task '{task}': nothing could be measured there",
            f"carve that split from train: {where}.splits.{split}=null {where}.{split}=0.1, or name one with labels",
        )

    def _no_label(self, task: str) -> Problem:
        places = [
            f"column '{', '.join(labels[task].columns)}' of data set '{name}'"
            for name, labels in self.labels.items()
            if task in labels
        ]
        rest = [other for other in self.tasks if other != task]
        leave_out = f", or leave the task out: tasks=[{','.join(rest)}]" if rest else ""
        return Problem(
            f"no training example has a label of task '{task}': {' and '.join(places)} holds nothing there",
            f"fill it in, or name another column{leave_out}",
        )

    def targets(self, name: str, rows: Rows) -> dict[str, np.ndarray]:
        """Task → the targets of all rows, see `read_label`; tags are left to the mixture."""
        return {
            task: read_label(label, rows, self.classes(name, label))
            for task, label in self.labels[name].items()
            if label.form != "tags"
        }

    def classes(self, name: str, label: Label) -> list[Any] | None:
        """The classes of a column of texts, the same for every split."""
        train, _ = self.rows(name, "train")
        check_positive(label, train)
        return class_names(label, train)

    def class_names(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, labels in self.labels.items():
            train, _ = self.rows(name, "train")
            for task, label in labels.items():
                names = names_of(label, train, self.classes(name, label))
                if names is not None:
                    found.setdefault(task, names)
        return found

    def datasets(self, split: Split) -> dict[str, Dataset]:
        return {name: self.dataset(name, split) for name in self.labels}

    @abstractmethod
    def dataset(self, name: str, split: Split) -> Dataset:
        """One data set of one split."""
