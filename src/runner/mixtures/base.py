"""What a mixture is: data sets by split, drawn from as examples made of numpy arrays.

Nothing here imports torch: the front end asks a mixture whether its data is there before any worker starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from runner.config.source import constant
from runner.errors import Problem, UserError, suggest
from runner.specs import InputKind, InputSpec, TaskKind

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "validation", "test"]


@dataclass
class Example:
    """One example before it is batched.

    Attributes:
        inputs: what the backbone reads, without the batch dimension, see `runner.specs.InputSpec`. Images are
            "pixels" (3, H, W) float32 in [0, 1].
        targets: task → target; a task without a label here has no key. Class maps (H, W) int64, -100 unlabelled;
            depth (1, H, W) float32 metres, normals (3, H, W) float32 unit vectors, edges and saliency (1, H, W)
            float32 in {0, 1}, all NaN where unlabelled; class () int64; multi-label (C,) float32; binary and
            regression () float32; tags (T,) int64.
        id: readable, unique in its data set.
    """

    inputs: dict[str, np.ndarray]
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    id: str = ""


class Dataset(Protocol):
    """One source of examples. Instances are pickled into DataLoader workers, so open files belong in `example`.

    Attributes:
        name: unique in its mixture.
        tasks: the tasks that its examples may have targets for.
    """

    name: str
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        """Number of examples."""

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Example `index`; `rng` drives the augmentation, None gives the example as evaluation sees it."""


class Mixture(ABC):
    """The data of a set of tasks.

    Args:
        data_root: where data lies, see `runner.mixtures.locate`.
        tasks: task name → the task's config, as the run trains them.

    Making one is cheap and touches no data; `check` looks, `setup` and `datasets` open.
    """

    input_kind: ClassVar[InputKind]

    def __init__(self, data_root: str, *, tasks: Mapping[str, dict[str, Any]]) -> None:
        self.data_root = data_root
        self.tasks = {name: dict(task) for name, task in tasks.items()}

    @abstractmethod
    def check(self) -> list[Problem]:
        """Everything that is wrong with the keys, the tasks or the data, as far as can be seen cheaply."""

    @abstractmethod
    def setup(self, pretrained: str | None) -> InputSpec:
        """What the backbone will read.

        Args:
            pretrained: the backbone's checkpoint, whose tokenizer a text mixture uses; None for none.
        """

    @abstractmethod
    def datasets(self, split: Split) -> dict[str, Dataset]:
        """The data sets of a split by name. Validation is carved from train where the source has none."""

    # ---- what a trained run needs of its mixture to read inputs of a person's own -----------------------------------

    def keep(self) -> dict[str, Any]:
        """What `setup` took from the training data to make inputs, in values that JSON can write."""
        return {}

    def restore(self, kept: Mapping[str, Any], pretrained: str | None) -> None:
        """Instead of `setup`: take what `keep` gave, without a look at the data."""
        if kept:
            raise TypeError(f"{type(self).__name__} keeps {', '.join(kept)} and does not take it back")

    def class_names(self) -> dict[str, list[str]]:
        """Task → names of its classes in order, where the data or the keys have names; after `setup`."""
        return {}

    def picture(self, image: Image, size: tuple[int, int]) -> np.ndarray:
        """A person's own picture as evaluation would see it, (3, H, W) float32 in [0, 1], for tasks that are not dense.

        Args:
            size: (H, W) of training images.
        """
        from runner.mixtures.images import pixels

        return pixels(image, size, "resize")


@dataclass(frozen=True)
class Annotation:
    """What a data set has to offer to a task.

    Attributes:
        kind: the kind of task that can use it.
        loss_kind: "classification" or "regression", as tasks say of themselves; None accepts both.
        num_classes: how many classes its labels have; None where they are no classes.
    """

    kind: TaskKind
    loss_kind: Literal["classification", "regression"] | None = None
    num_classes: int | None = None


def check_tasks(tasks: Mapping[str, Mapping[str, Any]], offered: Mapping[str, Annotation]) -> list[Problem]:
    """Problems of tasks that the data has no labels for, or not of that kind.

    Args:
        tasks: task name → config. offered: annotation name → what it is; a task uses the annotation of its own name.
    """
    problems = []
    for name, task in tasks.items():
        where, annotation = f"mixture.tasks.{name}", offered.get(name)
        if annotation is None:
            problems.append(Problem(f"the data has no labels for task '{name}' ({where})", suggest(name, offered)))
            continue
        target, classes = str(task.get("_target_", "")), task.get("num_classes")
        kind, loss_kind = constant(target, "kind"), constant(target, "loss_kind")
        wants = [annotation.kind, *([annotation.loss_kind] if annotation.loss_kind else [])]
        is_ = [kind, *([loss_kind] if annotation.loss_kind else [])]
        if any(a and a != b for a, b in zip(is_, wants, strict=True)):
            what = f"'{where}' is a {' '.join(map(str, is_))} task, but its labels are for {' '.join(wants)}"
            problems.append(Problem(what, f"choose an option for '/task@tasks.{name}' that fits", "runner ls task"))
        elif isinstance(classes, int) and annotation.num_classes is None:
            problems.append(Problem(f"'{where}' has num_classes={classes}, but its labels are no classes"))
        elif isinstance(classes, int) and classes != annotation.num_classes:
            what = f"'{where}.num_classes' is {classes}, but the labels have {annotation.num_classes} classes"
            problems.append(Problem(what, f"set {where}.num_classes={annotation.num_classes}"))
    return problems


def carve(total: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices of a training set into train and validation, the same way on every machine.

    Args:
        total: examples in the published training set.
        validation: a share of them (a float below 1) or a number of them (an int).
        seed: decides which; part of the mixture's config, so that it does not change with the run's seed.

    Returns:
        Ascending int64 indices of train and validation, disjoint, both non-empty.

    Raises:
        UserError: one of the two would be empty.
    """
    count = int(validation) if isinstance(validation, int | np.integer) else round(validation * total)
    if isinstance(validation, float) and 0 < validation < 1:
        count = min(max(count, 1), total - 1)
    if not 0 < count < total:
        raise UserError(
            f"'mixture.validation' is {validation}: that leaves no example for train or validation, of {total}",
            "give a share such as 0.1, or a count such as 100",
        )
    order = np.random.default_rng([seed, total]).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])
