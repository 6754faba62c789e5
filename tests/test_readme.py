"""What README.md tells people to write and to run works as it stands there."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from runner.cli.main import VERBS
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train


@pytest.fixture
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_nothing_is_left_to_fill_in(readme):
    assert "@@" not in readme


def test_the_commands_it_names_compose(readme):
    lines = re.findall(r"runner (\w+) ([^\n`#]*)", readme)
    assert {verb for verb, _ in lines} <= {*VERBS, "from"}
    trained = [
        shlex.split(rest) for verb, rest in lines if verb == "train" and "experiment=" in rest and "lrr" not in rest
    ]
    assert len(trained) > 8
    for words in trained:
        overrides = [word for word in words if "=" in word]
        assert not compose("train", overrides, multirun="-m" in words).problems, overrides


def test_the_data_set_of_ones_own(readme, tmp_path):
    text = re.search(r"```yaml\n# my/mixture/reviews.yaml\n(.*?)```", readme, re.DOTALL).group(1)
    (tmp_path / "my" / "mixture").mkdir(parents=True)
    (tmp_path / "my" / "mixture" / "reviews.yaml").write_text(text)
    for split, count in (("train", 40), ("test", 6)):
        Path("reviews").mkdir(exist_ok=True)
        with open(f"reviews/{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "sentiment", "topic"])
            for i in range(count):
                label = "" if i % 5 == 4 else i % 2  # an empty cell is a missing target
                writer.writerow([f"{('bad', 'good')[i % 2]} {('soup', 'film', 'book')[i % 3]}", label, i % 3])
    overrides = [
        "mixture=reviews", "backbone=bert", "backbone.size=tiny", "trainer.max_steps=2", "trainer.batch_size=4",
        "trainer.num_workers=0", "tracking=jsonl",
    ]  # fmt: skip
    config = finalize(compose("train", overrides, tmp_path / "my"))
    run = RunDirectory.claim(config, "train", [])
    assert train(run, StopFlag()) == 0
    result = json.loads((run.path / "result.json").read_text())
    assert set(result["tasks"]) == {"sentiment", "topic"}
    assert yaml.safe_load(text)["tasks"]["topic"]["num_classes"] == 3
