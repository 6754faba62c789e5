"""Given baselines: mappings, files, runs, folders of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from runner.errors import UserError
from runner.reporting.given import read_baseline

NUMBERS = {"depth": {"rmse": 0.5}, "edge": {"f": 0.7}}


def result(folder: Path, tasks: dict, split: str = "test", validation: dict | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"split": split, "tasks": tasks, "validation": validation or {}}))


def test_a_mapping_and_files_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(NUMBERS))
    (tmp_path / "a.json").write_text(json.dumps(NUMBERS))
    for given in (NUMBERS, str(tmp_path / "a.yaml"), str(tmp_path / "a.json")):
        assert read_baseline(given, ["depth", "edge"], "test") == NUMBERS
        assert read_baseline(given, ["depth"], "test") == {"depth": {"rmse": 0.5}}


def test_runs_and_the_mean_over_seeds(tmp_path: Path) -> None:
    result(tmp_path / "a", {"depth": {"rmse": 0.4}, "edge": {"f": 0.7}})
    result(tmp_path / "b", {"depth": {"rmse": 0.6, "other": None}, "edge": {"f": 0.7}})
    assert read_baseline(str(tmp_path / "a"), ["depth"], "test") == {"depth": {"rmse": 0.4}}
    both = read_baseline(str(tmp_path), ["depth", "edge"], "test")
    assert both["depth"]["rmse"] == pytest.approx(0.5)
    assert both["edge"] == {"f": 0.7}


def test_the_split_must_be_the_same(tmp_path: Path) -> None:
    result(tmp_path / "a", NUMBERS, "test", {"depth": {"rmse": 9.0}})
    assert read_baseline(str(tmp_path / "a"), ["depth"], "validation") == {"depth": {"rmse": 9.0}}
    result(tmp_path / "b", NUMBERS, "validation")
    with pytest.raises(UserError, match="numbers of the validation split"):
        read_baseline(str(tmp_path / "b"), ["depth"], "test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "not a mapping"),
        ("depth: 3", "must be a mapping of metrics"),
        ("depth: {rmse: good}", "must be a number"),
        ("depth: {rmse: true}", "must be a number"),
        ("edge: {f: 1}", "no baseline for depth"),
        ("{", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_baseline(str(tmp_path / "a.yaml"), ["depth"], "test")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for given in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(UserError, match="there is no"):
            read_baseline(str(given), ["depth"], "test")


def test_the_report_and_the_run_read_a_folder_alike(tmp_path: Path) -> None:
    """A folder with joint and single-task runs: the single-task ones are the baseline, for both."""
    from runner.reporting.baselines import given_baseline
    from tests.reporting.synthetic import make_config, write_run

    write_run(tmp_path / "joint", make_config(), rows=0)
    for seed, rmse in ((0, 0.4), (1, 0.6)):
        config = make_config(seed=seed)
        config["mixture"]["tasks"] = {"depth": config["mixture"]["tasks"]["depth"]}
        write_run(tmp_path / f"depth-{seed}", config, values={"depth": {"rmse": rmse}}, rows=0)
    assert read_baseline(str(tmp_path), ["depth"], "test") == {"depth": {"rmse": pytest.approx(0.5)}}
    baseline = given_baseline(str(tmp_path), None)
    assert baseline.samples == {"depth": {"rmse": {0: 0.4, 1: 0.6}}}
    with pytest.raises(UserError, match="no baseline for segmentation"):
        read_baseline(str(tmp_path), ["depth", "segmentation"], "test")
