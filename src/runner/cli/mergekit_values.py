"""Values in mergekit YAML: numbers, gradients over layers, and rules by the names of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IN_LAYER = r"(?:[^.]*[^.\d][^.]*\.)*"
"""In front of the first number in a tensor's name, which is the layer's: experts of a layer have numbers, too."""

BEFORE_LAYERS = r"(?:embed(?!_out)|wte|wpe|tok_)"
"""In the names of tensors that come before all layers, where a gradient starts; what comes after them is at its end."""

Row = Sequence[Any]
"""What counts for one model: settings from the nearest to the default, a number. The first that has a value counts."""


def by_tensor(rows: Sequence[Row], layers: int) -> tuple[list[float], dict[str, list[float]]]:
    """Settings as numbers by the names of tensors.

    Args:
        rows: one per model.
        layers: of the models, where a setting is a gradient over them.

    Returns:
        The values for tensors that no pattern names, and pattern → values for the others, of which the first that fits
        counts.
    """
    settings = [setting for row in rows for setting in row]
    filters = dict.fromkeys(f for setting in settings for f in _filters(setting))
    places: list[tuple[str, float]] = []  # (what names of tensors there look like, where on a gradient they are)
    if any(map(is_gradient, settings)):
        spots = [layer / (layers - 1) if layers > 1 else 1.0 for layer in range(layers)]
        places = [(rf"{IN_LAYER}{layer}\.", spot) for layer, spot in enumerate(spots)]
        places.append((f".*{BEFORE_LAYERS}", 0.0))
    table = {}
    for words in filters:
        ahead = f"(?=.*{re.escape(words)})"
        for place, spot in places:
            table[f"re?:^{ahead}{place}"] = [_first(row, words, spot) for row in rows]
        table[f"re?:^{ahead}"] = [_first(row, words, 1.0) for row in rows]
    for place, spot in places:
        table[f"re?:^{place}"] = [_first(row, None, spot) for row in rows]
    return [_first(row, None, 1.0) for row in rows], table


def layers_of(model: str | None) -> int:
    """How many layers a local model's config.json says; 0 where there is none."""
    try:
        config = json.loads((Path(str(model)).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    config = config.get("text_config") or config
    found = (config.get(key) for key in ("num_hidden_layers", "n_layer", "num_layers"))
    return next((count for count in found if isinstance(count, int)), 0)


def one(values: Sequence[float]) -> Any:
    """One number where all are the same."""
    return values[0] if len(set(values)) == 1 else list(values)


def _rules(setting: Any) -> list[Mapping[str, Any]] | None:
    """A setting that depends on names, as [{filter, value}, …]; None for one that does not."""
    if isinstance(setting, dict):
        return [setting]
    return setting if isinstance(setting, list) and setting and isinstance(setting[0], dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sound(setting: Any) -> bool:
    """Whether it is a number, a gradient (a list of numbers), or rules {filter, value} of these."""
    rules = _rules(setting)
    if rules is not None:
        return all(isinstance(r, dict) and "value" in r and r.keys() <= {"value", "filter"} for r in rules) and all(
            _rules(r["value"]) is None and sound(r["value"]) for r in rules
        )
    if isinstance(setting, list):
        return bool(setting) and all(map(_is_number, setting))
    return _is_number(setting)


def _filters(setting: Any) -> list[str]:
    return [str(rule["filter"]) for rule in _rules(setting) or () if rule.get("filter") not in (None, "*")]


def is_gradient(setting: Any) -> bool:
    """Whether it depends on the layer."""
    rules = _rules(setting)
    return isinstance(setting, list) if rules is None else any(isinstance(rule["value"], list) for rule in rules)


def _first(row: Sequence[Any], words: str | None, spot: float) -> float:
    """What counts for a tensor that has `words` in its name (None: none of the filters), at a spot from 0 to 1."""
    for setting in row:
        rules = _rules(setting)
        value = setting
        if rules is not None:
            value = next((rule["value"] for rule in rules if rule.get("filter") in (words, None, "*")), None)
        if value is not None:
            return _gradient(value, spot) if isinstance(value, list) else float(value)
    raise AssertionError("the default is a number")


def _gradient(values: Sequence[float], spot: float) -> float:
    """A value out of a list that is spread evenly from 0 to 1."""
    place = spot * (len(values) - 1)
    low = min(int(place), max(len(values) - 2, 0))
    high = min(low + 1, len(values) - 1)
    return round(float(values[low] + (place - low) * (values[high] - values[low])), 9)
