"""What the classes of a column are called: as the YAML lists them, as the data writes them, or as its file says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.mixtures.labels import Label
    from runner.mixtures.rows import Rows


def names_of(label: Label, rows: Rows, written: Sequence[Any] | None) -> list[str] | None:
    """The names of a task's classes, in order; None where there are none, and for tasks without classes.

    Args:
        rows: of the training split.
        written: the classes of a column of texts, see `runner.mixtures.labels.class_names`.
    """
    if label.form in ("binary", "number"):
        return None
    several = label.columns if len(label.columns) > 1 else None
    names = label.classes or several or written or _declared(rows, label.columns[0])
    return [str(name) for name in names] if names and len(names) == label.num_classes else None


def _declared(rows: Rows, column: str) -> list[str] | None:
    """The names that Hugging Face's `datasets` writes beside a column of class numbers."""
    metadata = rows.table.schema.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):  # no such note, or somebody else's
        return None
    return _names(features.get(column)) if isinstance(features, Mapping) else None


def _names(feature: Any) -> list[str] | None:
    """Of a ClassLabel, or of a list of them in any of the forms that it was written in over the years."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        return feature["names"]
    return _names(feature.get("feature"))
