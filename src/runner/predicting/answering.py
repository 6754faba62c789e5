"""From inputs to a table of answers: batches go through the model as they do in evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from runner.errors import EXIT_DONE, EXIT_FAILED, RunFailed, UserError
from runner.mixtures.collate import collate
from runner.mixtures.qm9 import QM9
from runner.mixtures.tables import Table
from runner.mixtures.text import Texts
from runner.predicting.images import ImageReader
from runner.predicting.molecules import MoleculeReader
from runner.predicting.opened import Opened
from runner.predicting.reader import Item, Reader
from runner.predicting.request import Request
from runner.predicting.show import Shown
from runner.predicting.table import GIVEN, PredictionTable
from runner.predicting.tables import TableReader
from runner.predicting.texts import TextReader, pairs_of
from runner.tasks.base import Task
from runner.types import final

_TOLD = 10
"""Inputs without a prediction whose reasons are printed."""

_EVERY_S = 10.0


def make_reader(opened: Opened, tasks: list[str], request: Request) -> Reader:
    """The reader of what a run's mixture is made of; see `runner.predicting.accepts`."""
    mixture, inputs = opened.parts.mixture, opened.parts.inputs
    if isinstance(mixture, Texts):
        return TextReader(mixture, tasks, request)
    if isinstance(mixture, Table):
        return TableReader(mixture, tasks, request)
    if isinstance(mixture, QM9):
        return MoleculeReader(mixture, tasks, request, inputs.elements)
    return ImageReader(mixture, tasks, request, inputs.size or (64, 64))


def answer(opened: Opened, tasks: list[str], request: Request) -> int:
    """Predict `tasks` for every input, write the table, say what came of it; returns the exit code.

    Raises:
        UserError: nothing could be read.
        RunFailed: the table cannot be written, or a batch does not fit into memory.
    """
    reader = make_reader(opened, tasks, request)
    answers = Answers(opened, reader, request.raw)
    shown = Shown(answers.tasks)
    table = None
    if request.folder is not None:
        table = PredictionTable(request.folder, request.format, answers.columns, answers.worded)
    size = request.batch_size or opened.settings.eval_batch_size or opened.settings.batch_size
    began = told = time.perf_counter()
    failed: list[tuple[str, str]] = []
    lost = count = 0
    try:
        for items in _batches(reader.items(), size):
            reader.prepare(items)
            for item, row, values, words in answers.of(items):
                count += 1
                if item.errors:
                    lost += 1
                    failed += [(item.where, item.errors[0])] if len(failed) < _TOLD else []
                if table is not None:
                    table.write(row)
                if values:
                    shown.add(values, partial(reader.name, item), words)
            if time.perf_counter() - told > _EVERY_S:
                told = time.perf_counter()
                print(f"{count:,} {reader.noun}s, {count / (told - began):.0f} a second", file=sys.stderr)
        if not count:
            raise UserError(f"'{request.file}' has no {reader.noun}s")
        if lost == count and not shown.count:
            _tell(failed, lost, count, reader.noun)
            print(f"nothing was written: no {reader.noun} has a prediction", file=sys.stderr)
            return EXIT_FAILED
        path = table.finish() if table is not None else None
    finally:
        if table is not None:
            table.drop()
    shown.show(reader.noun)
    seconds = time.perf_counter() - began
    if path is not None:
        print(f"{count:,} {reader.noun}{'s' if count != 1 else ''} in {seconds:.1f} s -> {path}")
    for note in [f"left out: {task}: it {why}" for task, why in reader.left_out.items()] + reader.notes():
        print(f"note: {note}", file=sys.stderr)
    _tell(failed, lost, count, reader.noun)
    return EXIT_FAILED if lost else EXIT_DONE


def _tell(failed: list[tuple[str, str]], lost: int, count: int, noun: str) -> None:
    if lost:
        print(f"error: {lost:,} of {count:,} {noun}s lack a prediction:", file=sys.stderr)
        for where, why in failed:
            print(f"  {where}: {why}", file=sys.stderr)
        if lost > len(failed):
            print(f"  … and {lost - len(failed):,} more", file=sys.stderr)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Answers:
    """The model's answers to items, as rows.

    Attributes:
        tasks: in the order of the run. columns: of a row; one of the input that has the name of another is called
            NAME_given. worded: those of texts and tags.
    """

    def __init__(self, opened: Opened, reader: Reader, raw: bool) -> None:
        self.opened, self.reader, self.raw = opened, reader, raw
        served = {task for tasks in reader.passes.values() for task in tasks}
        self.tasks = [task for task in opened.parts.tasks if task in served]
        own = [task + end for task in self.tasks for end in _ends(opened.parts.tasks[task], raw)]
        self._names = {column: column + GIVEN if column in own else column for column in reader.columns}
        self.columns = [*self._names.values(), *own]
        tags = [task for task in self.tasks if opened.parts.tasks[task].kind == "token"]
        self.worded = {
            *self._names.values(),
            *(task + end for task in tags for end in _ends(opened.parts.tasks[task], raw)),
        }

    def of(
        self, items: list[Item]
    ) -> Iterator[tuple[Item, dict[str, Any], dict[str, Any], Callable[[], dict[str, str]]]]:
        """(item, its row, task → its answer, what gives task → words for a person) for each item, in order."""
        predictions: list[dict[str, np.ndarray]] = [{} for _ in items]
        for name, tasks in self.reader.passes.items():
            there = [i for i, item in enumerate(items) if name in item.examples]
            for i, found in zip(there, self._predict([items[i] for i in there], name, tasks), strict=True):
                predictions[i] |= found
        pass_of = {task: name for name, tasks in self.reader.passes.items() for task in tasks}
        for item, found in zip(items, predictions, strict=True):
            row = {self._names[column]: value for column, value in item.cells.items()}
            values: dict[str, Any] = {}
            for task in self.tasks:
                if task not in found:
                    continue
                described = self.opened.parts.tasks[task]
                places = item.words[pass_of[task]] if described.kind == "token" else None
                kept = found[task] if places is None else found[task][[p for p in places if p is not None]]
                if not np.isfinite(kept).all():
                    item.errors.append(f"the model's prediction of '{task}' is not finite")
                    continue
                said = described.answer(kept, self.raw)
                if places is not None:
                    said = {end: _spread(value, places) for end, value in said.items()}
                row |= {task + end: value for end, value in said.items()}
                values[task] = said[""]
            yield item, row, values, partial(self._words, item, found, values)

    def _words(self, item: Item, found: dict[str, np.ndarray], values: dict[str, Any]) -> dict[str, str]:
        """Task → what a person reads."""
        tasks = self.opened.parts.tasks
        return {
            task: pairs_of(item.cells, said) if tasks[task].kind == "token" else tasks[task].describe(found[task], True)
            for task, said in values.items()
        }

    def _predict(self, items: list[Item], name: str, tasks: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Task → raw prediction of each item, float32."""
        if not items:
            return
        opened = self.opened
        group = collate("input", [item.examples.pop(name) for item in items], opened.parts.inputs.pad_token_id)
        try:
            with torch.inference_mode(), opened.autocast():
                made = opened.model(group.to(opened.device), tasks)
            arrays = {task: final(prediction).float().cpu().numpy() for task, prediction in made.items()}
        except torch.OutOfMemoryError as error:
            hint = f"--batch-size {max(1, len(items) // 4)}, or --device cpu"
            raise RunFailed(f"{len(items)} {self.reader.noun}s do not fit into the GPU's memory", hint) from error
        for i in range(len(items)):
            yield {task: prediction[i] for task, prediction in arrays.items()}


def _spread(values: list[Any], places: list[int | None]) -> list[Any]:
    """A value per word, of words that have a token; None for the others."""
    given = iter(values)
    return [None if place is None else next(given) for place in places]


def _ends(task: Task, raw: bool) -> list[str]:
    """The ends of a task's columns."""
    shape = (0, task.out_channels) if task.kind == "token" else (task.out_channels,)
    return list(task.answer(np.zeros(shape, np.float32), raw))
