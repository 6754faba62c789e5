from __future__ import annotations

import pytest

from runner.reporting.match import circumstances, compare, overall, same_weights, verdict


@pytest.mark.parametrize(
    ("before", "now", "tolerance", "expected"),
    [
        (0.5, 0.5, 0.0, "exact"),
        (0.5, 0.5000001, 0.0, "different"),
        (0.5, 0.50049, 1e-3, "close"),
        (0.5, 0.5006, 1e-3, "different"),
        (-2.0, -2.001, 1e-3, "close"),
        (0.0, 1e-10, 1e-3, "close"),
        (0.0, 1e-3, 1e-3, "different"),
        (None, None, 0.1, "exact"),
        (None, 0.5, 0.1, "different"),
        (0.5, None, 0.1, "different"),
    ],
)
def test_verdict(before, now, tolerance, expected):
    assert verdict(before, now, tolerance) == expected


def test_every_number_is_compared_once_and_the_worst_counts():
    before = {"split": "test", "tasks": {"a": {"x": 1.0, "y": 2.0}, "b": {"z": 3.0}}, "validation": {"a": {"x": 4.0}}}
    now = {"split": "test", "tasks": {"a": {"x": 1.0, "y": 2.001}}, "validation": {"a": {"x": 5.0, "new": 1.0}}}
    found = compare(before, now, 1e-3)
    assert [(m.split, m.task, m.metric, m.verdict) for m in found] == [
        ("test", "a", "x", "exact"),
        ("test", "a", "y", "close"),
        ("test", "b", "z", "missing"),
        ("validation", "a", "x", "different"),
        ("validation", "a", "new", "missing"),
    ]
    assert overall(found) == "missing"
    assert overall(found[:2]) == "close" and overall(found[:1]) == "exact" and overall([]) == "missing"
    assert found[1].change == pytest.approx(0.001) and found[2].change is None


def test_validation_as_the_final_split_is_not_compared_twice():
    result = {"split": "validation", "tasks": {"a": {"x": 1.0}}, "validation": {"a": {"x": 1.0}}}
    assert len(compare(result, result, 0.0)) == 1


def test_circumstances():
    info = {"git": {"sha": "a" * 40, "dirty": False}, "python": "3.11", "packages": {"torch": "2.6"}, "signature": "s"}
    before = {"info": info, "result": {"device": "cuda", "processes": 1}}
    after = info | {"git": {"sha": "a" * 40, "dirty": True}, "packages": {"torch": "2.7", "numpy": "2"}}
    assert circumstances(before, before) == []
    assert circumstances(before, {"info": after, "result": {"device": "cpu", "processes": 1}}) == [
        ("git", "a" * 12, "a" * 12 + " with changes"),
        ("torch", "2.6", "2.7"),
        ("device", "cuda", "cpu"),
        ("numpy", "–", "2"),
    ]


def test_weights_are_compared_by_their_checksums(tmp_path):
    for name, crc in (("a", 1), ("b", 1), ("c", 2)):
        best = tmp_path / name / "checkpoints" / "best"
        best.mkdir(parents=True)
        (best / "DONE").write_text(f'{{"model.safetensors": [10, {crc}], "state.json": [5, {hash(name) % 100}]}}')
    assert same_weights(tmp_path / "a", tmp_path / "b") is True
    assert same_weights(tmp_path / "a", tmp_path / "c") is False
    assert same_weights(tmp_path / "a", tmp_path / "d") is None
