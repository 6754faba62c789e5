"""Rows of a table: the run's own statistics, and the numbers of its evaluation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from runner.config.build import build
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.mixtures.tables import Table
from runner.predicting import answering, tables, worker
from runner.predicting.request import Request
from runner.predicting.tables import category, number
from tests.mixtures.made import BINARY, MULTI_LABEL, REGRESSION, classes
from tests.predicting.runs import hide_data, predict, result, trained

HEADER = "id; age; job; zip; member; rich; size; hours"


def row(i: int) -> str:
    """Texts with spaces, numbers that are missing, codes with leading zeros."""
    rng = np.random.default_rng(i)
    age = "" if i % 7 == 0 else str(rng.integers(18, 80))
    job, code = ["Clerk", "Smith ", "?", ""][i % 4], f" {rng.integers(0, 9):02d}"
    cells = [f"p{i}", age, job, code, ["true", "false"][i % 2], [">50K", "<=50K"][i % 3 == 0], "SML"[i % 3]]
    return ";".join([*cells, str(rng.integers(10, 60))])


LABELS = {"rich": {"column": "rich", "positive": ">50K"}, "size": "size", "hours": "hours"}
SOURCES = {"people": {"path": "people.csv", "labels": LABELS}}
TASKS = {
    "rich": {"_target_": BINARY},
    "size": classes(3),
    "hours": {"_target_": REGRESSION, "shift": 30.0, "scale": 10.0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    place = tmp_path_factory.mktemp("tables")
    (place / "people.csv").write_text("\n".join([HEADER, *map(row, range(60))]) + "\n")
    keys = {"numeric": ["age"], "categorical": ["job", "zip", "member"], "unknown": ["?"], "log": ["age"]}
    mixture = {"sources": SOURCES, "tasks": TASKS, "test": 20, "validation": 10, "label_noise": {}} | keys
    return trained(place, "adult", mixture, "backbone=mlp", "backbone.size=tiny")


@pytest.fixture(scope="module")
def test_split(run: RunDirectory) -> tuple[Path, np.ndarray]:
    """The file of the test split's rows as they stand in the training file, and their numbers there."""
    config = run.config()
    mixture = build(config["mixture"], config["data_root"])
    _, numbers = mixture.rows("people", "test")
    lines = (Path(config["data_root"]) / "people.csv").read_text().splitlines()
    file = Path(config["data_root"]) / "test_rows.csv"
    file.write_text("\n".join([lines[0], *(lines[1 + i] for i in numbers)]) + "\n")
    return file, numbers


def test_predictions_of_the_test_split_are_those_of_the_evaluation(run, test_split, tmp_path) -> None:
    file, numbers = test_split
    hide_data(run, tmp_path)  # nothing of the training data is needed
    found = predict(run, tmp_path, file=str(file), keep=["rich", "hours", "size"])
    assert [r["row"] for r in found] == [str(i + 1) for i in range(len(numbers))]
    right = np.mean([(r["rich"] == "yes") == (r["rich_given"] == ">50K") for r in found])
    assert right == pytest.approx(result(run, "rich")["accuracy"], abs=1e-7)
    right = np.mean([r["size"] == r["size_given"] for r in found])
    assert right == pytest.approx(result(run, "size")["accuracy"], abs=1e-7)
    errors = [abs(float(r["hours"]) - float(r["hours_given"])) for r in found]
    assert np.mean(errors) == pytest.approx(result(run, "hours")["mae"], rel=1e-6)
    assert len({r["rich=yes"] for r in found}) > 3


def test_classes_have_the_names_that_the_data_gives_them(run, test_split, tmp_path) -> None:
    found = predict(run, tmp_path, file=str(test_split[0]), raw=True, tasks=["size"])
    assert list(found[0]) == ["row", "size", "size_probability", "size=L", "size=M", "size=S"]
    for r in found:
        shares = [float(r[f"size={c}"]) for c in "LMS"]
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert "LMS"[int(np.argmax(shares))] == r["size"]
        assert float(r["size_probability"]) == max(shares)


def test_forms_of_one_table_say_the_same(run, test_split, tmp_path) -> None:
    plain = predict(run, tmp_path / "csv", file=str(test_split[0]))
    table = csv.read_csv(test_split[0], parse_options=csv.ParseOptions(delimiter=";"))
    table = pa.table({name.strip(): c for name, c in zip(table.column_names, table.columns, strict=True)})
    texts = [{k: (v.strip() if isinstance(v, str) else v) for k, v in r.items()} for r in table.to_pylist()]
    parquet.write_table(pa.Table.from_pylist(texts), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in texts))
    (tmp_path / "rows.json").write_text(json.dumps(texts))
    for kind in ("parquet", "jsonl", "json"):
        found = predict(run, tmp_path / kind, file=str(tmp_path / f"rows.{kind}"))
        assert found == plain, kind


def test_what_is_missing_or_new_counts_as_in_training(run, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_text(
        "age,job,zip,member\n,?,05,true\nNA,,05,true\n,Astronaut,5,TRUE\n,Astronaut,5.0,true\n"
    )
    found = predict(run, tmp_path / "out", file=str(tmp_path / "a.csv"))
    for r in found[1:]:
        assert float(r["rich=yes"]) == pytest.approx(float(found[0]["rich=yes"]), abs=1e-6)
        assert float(r["hours"]) == pytest.approx(float(found[0]["hours"]), abs=1e-4)
    said = capsys.readouterr().err
    assert "column 'job': 2 rows have a category that no training row had ('Astronaut')" in said
    assert "zip" not in said  # 05, 5 and 5.0 are one of the whole numbers that training had


def test_a_missing_number_is_the_mean(run, tmp_path) -> None:
    mixture = build(run.config()["mixture"], "nowhere")
    mixture.restore(json.loads((run.path / "inputs.json").read_text())["learned"], None)
    assert isinstance(mixture, Table)
    mean = np.expm1(mixture.encoding.mean[0])
    texts = {"job": ["Clerk"] * 2, "zip": ["1"] * 2, "member": ["true"] * 2}
    missing, at_mean = mixture.encode({"age": np.array([np.nan, mean])}, texts)
    assert missing.inputs["numeric"][0] == 0
    np.testing.assert_allclose(at_mean.inputs["numeric"], 0, atol=1e-6)


def test_broken_rows_keep_their_place_and_are_told_together(run, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_text(
        "age,job,zip,member\n30,Clerk,1,true\nold,Clerk,1,true\n31,Clerk\n\n32,Clerk,1,true\n"
    )
    found = predict(run, tmp_path / "out", expect=1, file=str(tmp_path / "a.csv"))
    assert [r["row"] for r in found] == ["1", "2", "3", "4"]
    assert [bool(r["rich"]) for r in found] == [True, False, False, True]
    said = capsys.readouterr()
    assert "2 of 4 rows lack a prediction" in said.err
    assert "row 2: column 'age': 'old' is not a number" in said.err
    assert "row 3: it has 2 values, and the header 4" in said.err
    (tmp_path / "b.csv").write_text("age,job,zip,member\nold,Clerk,1,true\n")
    assert worker.main(Request(run=str(run.path), to=str(tmp_path / "none"), file=str(tmp_path / "b.csv"))) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_columns_that_are_not_there_are_named_together(run, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_text("age,name\n30,x\n")
    request = Request(run=str(run.path), to=str(tmp_path / "out"), file=str(tmp_path / "a.csv"))
    assert worker.main(request) == 2
    said = capsys.readouterr().err
    assert "lacks 3 of the 4 columns that the model reads: 'job', 'zip', 'member'" in said
    assert "it has age, name" in said
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_file(run, tmp_path, monkeypatch) -> None:
    """The rows of a file are asked for as batches need them."""
    ahead = []

    def endless(path):
        for i in itertools.count(1):
            ahead.append(i)
            yield i, {"age": "30", "job": "Clerk", "zip": "1", "member": "true"}

    class Enough(Exception):
        pass

    written: list[int] = []

    def write(self, row):
        written.append(row["row"])
        if len(written) == 50:
            raise Enough

    (tmp_path / "a.csv").write_text("age,job,zip,member\n30,Clerk,1,true\n")
    monkeypatch.setattr(tables, "read_rows", endless)
    monkeypatch.setattr(answering.PredictionTable, "write", write)
    monkeypatch.setattr(worker, "crashed", lambda error: 99 if isinstance(error, Enough) else 0)
    request = Request(run=str(run.path), to=str(tmp_path / "out"), file=str(tmp_path / "a.csv"), batch_size=8)
    assert worker.main(request) == 99
    assert len(ahead) <= 56
    assert not (tmp_path / "out").exists()  # the begun table is gone


def test_a_run_without_inputs_json_learns_from_its_data_again(run, test_split, tmp_path, capsys) -> None:
    expected = predict(run, tmp_path / "a", file=str(test_split[0]))
    kept = run.path / "inputs.json"
    content = kept.read_text()
    kept.unlink()
    try:
        place = str(test_split[0].parent)
        assert predict(run, tmp_path / "b", file=str(test_split[0]), data_root=place) == expected
        gone = Request(run=str(run.path), to=str(tmp_path / "c"), file=str(test_split[0]), data_root="/nowhere")
        assert worker.main(gone) == 2
        said = capsys.readouterr().err
        assert "has no inputs.json" in said
        assert "--data-root" in said
        assert "people.csv" in said
        kept.write_text("{")
        assert worker.main(gone) == 2
        assert "inputs.json is damaged" in capsys.readouterr().err
    finally:
        kept.write_text(content)


def test_values_of_columns() -> None:
    assert number("1e3") == 1000
    assert number(True) == 1
    assert number("false") == 0
    assert np.isnan(number(None)) and np.isnan(number(""))
    for wrong in ("abc", "1_000", "inf", [1]):
        with pytest.raises(ValueError, match=r".*"):
            number(wrong)
    assert [category(v, "int64") for v in (7, "07", "7.0", 7.0, "x", "7.5")] == ["7", "7", "7", "7", "x", "7.5"]
    assert [category(v, "string") for v in (7, "07", "", None)] == ["7", "07", None, None]
    assert [category(v, "bool") for v in (True, "TRUE", "0")] == ["true", "true", "false"]
    assert category("2020-01-02T03:04", "timestamp[s]") == category("2020-01-02 03:04:00", "timestamp[s]")
    assert category("2020-01-02", "date32[day]") == "2020-01-02"
    assert category("1.50", "double") == category(1.5, "double") == category("1.5", "double")
    assert category("x", "double") == "x"


def test_several_labels_stand_in_one_cell(tmp_path) -> None:
    task = build({"_target_": MULTI_LABEL, "num_classes": 3, "class_names": ["a", "b c", "d"]}, "t")
    found = task.answer(np.array([2.0, -1.0, 0.0], np.float32), True)
    assert found[""] == ["a", "d"]
    assert found["_probability"] == pytest.approx([0.880797, 0.5], abs=1e-6)
    assert found["=b c"] == pytest.approx(0.268941, abs=1e-6)
    with pytest.raises(UserError):
        build({"_target_": MULTI_LABEL, "num_classes": 3, "class_names": ["a"]}, "t")
