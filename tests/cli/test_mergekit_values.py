"""Values in mergekit files by tensor, against a plain reading of what its manual says."""

from __future__ import annotations

import json

import pytest

from runner.cli.mergekit_values import by_tensor, layers_of, sound
from runner.merging.coefficients import factor_at

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(4) for part in ("self_attn.q", "mlp.up", "norm")),
    *(f"model.layers.{i}.mlp.experts.{e}.up.weight" for i in range(4) for e in range(4)),
    "model.norm.weight",
    "lm_head.weight",
]


def plainly(setting, name: str) -> float | None:
    """A number, a list spread over the layers, or the first rule whose filter is part of the name."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        return next((plainly(r["value"], name) for r in setting if r.get("filter", "*") in (*pieces(name), "*")), None)
    if not isinstance(setting, list):
        return float(setting)
    spot = int(name.split(".")[2]) / 3 if ".layers." in name else float("embed" not in name)
    place = spot * (len(setting) - 1)
    below = min(int(place), len(setting) - 1)
    above = min(below + 1, len(setting) - 1)
    return setting[below] * (1 - (place - below)) + setting[above] * (place - below)


def pieces(name: str) -> list[str]:
    return [name[i:j] for i in range(len(name)) for j in range(i + 1, len(name) + 1)]


ROWS = {
    "numbers": [[0.5, 1.0], [1.0]],
    "a gradient": [[[0.0, 1.0], 1.0], [0.3, 1.0]],
    "a gradient of four, another of three": [[[0.0, 0.3, 0.7, 1.0], 1.0], [[1.0, 0.0, 1.0], 1.0]],
    "filters": [[[{"filter": "mlp", "value": 0.5}, {"value": 0.0}], 1.0], [1.0]],
    "a gradient in a filter": [[[{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": 0.1}], 0.7]],
    "nothing fits: the next level": [[[{"filter": "lm_head", "value": 2.0}], [0.2, 0.4], 1.0]],
    "embeddings by name": [[[{"filter": "embed_tokens", "value": 0.0}, {"filter": "*", "value": [1, 2]}], 1.0]],
    "a dot is a dot": [[[{"filter": "norm.w", "value": 3.0}, {"value": 1.0}], 1.0]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_every_tensor_gets_its_values(rows):
    values, table = by_tensor(rows, 4)
    for name in NAMES:
        wanted = [next(v for v in (plainly(s, name) for s in row) if v is not None) for row in rows]
        assert factor_at({**table, "*": values}, name, len(rows)) == pytest.approx(wanted), name


@pytest.mark.parametrize(
    "setting", [True, "x", [], [1, "x"], [{"value": 1}, 2], [{"filter": "a"}], {"value": {"value": 1}}]
)
def test_settings_that_mean_nothing(setting):
    assert not sound(setting)


def test_layers_are_counted_by_the_models(tmp_path):
    assert layers_of(str(tmp_path)) == layers_of(None) == 0
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 7}}))
    assert layers_of(str(tmp_path)) == 7
