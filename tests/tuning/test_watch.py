from __future__ import annotations

import json

from runner.tuning.watch import Watcher


def row(step, metric, value, split="validation"):
    return json.dumps({"step": step, "split": split, "task": "a", "metric": metric, "value": value}) + "\n"


def test_evaluations_are_given_once_and_whole(tmp_path):
    watcher = Watcher(tmp_path)
    assert watcher.new() == [] and watcher.step is None
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(2, "loss", 9.0, "train") + row(4, "x", 1.0))
    assert watcher.new() == []  # it may be half written
    with path.open("a") as file:
        file.write(row(4, "y", 2.0))
    assert watcher.new() == []
    assert watcher.new() == [(4, {"a": {"x": 1.0, "y": 2.0}})] and watcher.step == 4
    assert watcher.new() == []
    with path.open("a") as file:
        file.write(row(8, "x", None) + row(8, "y", 3.0) + row(9, "loss", 1.0, "train") + row(12, "x", 5.0)[:-5])
    assert watcher.new() == [(8, {"a": {"y": 3.0}})]
    with path.open("a") as file:
        file.write(row(12, "x", 5.0)[-5:])
    assert watcher.new(ended=True) == [(12, {"a": {"x": 5.0}})]


def test_a_new_attempt_that_cuts_the_file_is_followed(tmp_path):
    watcher = Watcher(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(4, "x", 1.0) + row(8, "x", 2.0) + row(9, "l", 0.0, "train"))
    assert [step for step, _ in watcher.new()] == [4, 8]
    path.write_text(row(4, "x", 1.0))
    assert watcher.new(ended=True) == [(4, {"a": {"x": 1.0}})]
