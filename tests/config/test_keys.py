from __future__ import annotations

import importlib
import inspect

import pytest

from runner.config import paths, schema
from runner.config.keys import schema_keys, signature


def test_keyword_only_parameters_are_the_keys(toy):
    keys = signature(f"{toy}.Everything")
    assert "injected" not in keys
    assert "self" not in keys
    assert [name for name, key in keys.items() if key.required] == ["whole"]
    assert not keys["strange"].kind.known
    assert keys["colour"].kind.choices == ("red", "green")
    assert keys["mode"].kind.choices == ("fast", "slow")
    assert keys["size"].kind.accepts([1, 2])
    assert not keys["size"].kind.accepts([1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InheritsTwice", {"width": False}),
        ("Data", {"width": True, "depth": False}),
        ("KeywordData", {"width": False}),
        ("function", {"steps": False}),
        ("renamed", {"steps": False}),
    ],
)
def test_inherited_dataclasses_and_functions(toy, name, expected):
    assert {key: value.required for key, value in signature(f"{toy}.{name}").items()} == expected


@pytest.mark.parametrize(
    "cls",
    [schema.TrainerConfig, schema.SlurmConfig, schema.TrainKeys, schema.EvalKeys, schema.MergeKeys, schema.TuneConfig],
)
def test_schema_fields_are_the_keys(cls):
    keys = schema_keys(cls)
    assert list(keys) == list(inspect.signature(cls).parameters)
    assert all(key.kind.known for key in keys.values())


def shipped_targets() -> list[str]:
    found = set()
    for group in paths.groups():
        for option in paths.options(group):
            for line in option.path.read_text().splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "_target_" and "null" not in value:
                    found.add(value.split("#")[0].strip())
    return sorted(found)


@pytest.mark.parametrize("target", shipped_targets())
def test_reading_source_agrees_with_python_itself(target):
    """The oracle is `inspect.signature` of the imported component."""
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    expected = {p.name: p.default is p.empty for p in real if p.kind is p.KEYWORD_ONLY}
    assert {key: value.required for key, value in signature(target).items()} == expected
