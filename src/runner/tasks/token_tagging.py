"""One class per token: part of speech, named entities, slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runner.config.kinds import Fraction, PositiveInt
from runner.tasks.base import Elementwise, check_labels, check_names, softmax, up
from runner.tasks.metrics import Metrics, accuracy, class_counts, mean_f1
from runner.tasks.segmentation import cross_entropy, cross_entropy_counts, weight_per_class
from runner.types import MISSING_INT


class TokenTagging(Elementwise):
    """Cross-entropy over labelled tokens; accuracy and F1 over tokens, and F1 over entities for BIO tags.

    Targets label one token per word (usually its first) and leave the others at -100. loss_sum = Σ w[y]·CE,
    loss_count = Σ w[y] over labelled tokens. Metrics: `accuracy`, `f1` (averaged over the classes that occur), and,
    where `class_names` are BIO tags, `span_f1`: micro F1 over entities, right when type and both ends are right. A tag
    I-x that continues nothing opens an entity, as in the CoNLL-2003 evaluation.

    Args:
        num_classes: tags.
        label_smoothing, class_weights: as in classification.
        class_names: O, B-x, I-x, …; other names are for panels only.
        headline, head: see `Task`; null takes span_f1 for BIO tags and accuracy otherwise.
    """

    kind = "token"
    loss_kind = "classification"

    def __init__(
        self,
        name: str,
        *,
        num_classes: PositiveInt,
        label_smoothing: Fraction = 0.0,
        class_weights: list[float] | None = None,
        class_names: list[str] | None = None,
        headline: Literal["accuracy", "f1", "span_f1", "loss"] | None = None,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        self.class_names = check_names(name, class_names, num_classes)
        self.spans = is_bio(self.class_names)
        directions = up("accuracy", "f1", *["span_f1"] * self.spans)
        headline = headline or ("span_f1" if self.spans else "accuracy")
        super().__init__(name, out_channels=num_classes, directions=directions, headline=headline, head=head)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.class_weights = weight_per_class(name, class_weights, num_classes)

    def loss_sum(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction.movedim(-1, 1), target, self.class_weights, self.label_smoothing, "sum")

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(self, prediction.movedim(-1, 1), target, self.class_weights, self.label_smoothing, "none")

    def element_counts(self, target: Tensor) -> Tensor:
        return cross_entropy_counts(self, target, self.class_weights)

    def metrics(self) -> Metrics:
        return Metrics({"classes": (3, self.num_classes), "spans": (3,)}, self._observe, self._summarise)

    def _observe(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        check_labels(self, target, self.num_classes)
        said_BT = prediction.max(-1).indices
        seen = {"classes": class_counts(said_BT, target, self.num_classes, MISSING_INT)}
        if self.spans:
            counts = [0, 0, 0]
            for said, true in zip(said_BT.cpu(), target.cpu(), strict=True):
                labelled = true != MISSING_INT
                found, wanted = (self._entities(x[labelled].tolist()) for x in (said, true))
                for i, number in enumerate((len(found & wanted), len(found), len(wanted))):
                    counts[i] += number
            seen["spans"] = torch.tensor(counts)
        return seen

    def _entities(self, tags: Iterable[int]) -> set[tuple[str, int, int]]:
        return entities([self.class_names[i] for i in tags])

    def _summarise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {"accuracy": accuracy(state["classes"]), "f1": mean_f1(state["classes"])}
        right, found, wanted = state["spans"]
        return values | ({"span_f1": 2 * right / (found + wanted)} if self.spans else {})

    def answer(self, prediction: np.ndarray, raw: bool = False) -> dict[str, Any]:
        tags = [self.class_names[i] for i in prediction.argmax(-1)]
        share_WC = softmax(prediction)
        every = zip(self.class_names, share_WC.T.tolist(), strict=True) if raw else ()
        return {"": tags, "_probability": share_WC.max(-1).tolist()} | {f"={name}": p for name, p in every}

    def describe(self, value: np.ndarray, is_prediction: bool) -> str:
        tags = value.argmax(-1) if is_prediction else value
        return " ".join("·" if tag == MISSING_INT else self.class_names[int(tag)] for tag in tags)


def is_bio(names: Sequence[str]) -> bool:
    """Whether the names are O and at least one B-x or I-x, and nothing else."""
    return "O" in names and len(names) > 1 and all(name == "O" or name[:2] in ("B-", "I-") for name in names)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, past the last word) of every entity in a BIO sequence."""
    found: set[tuple[str, int, int]] = set()
    start, kind = 0, None  # of the entity that is open
    for i, tag in enumerate([*tags, "O"]):
        inside = tag.startswith("I-") and tag[2:] == kind
        if inside:
            continue
        if kind is not None:
            found.add((kind, start, i))
        start, kind = i, None if tag == "O" else tag[2:]
    return found
