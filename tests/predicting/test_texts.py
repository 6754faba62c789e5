"""Texts, pairs and words: the run's own tokenizer, and the numbers of its evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoTokenizer

from runner.exporting.folder import export
from runner.launching.rundir import RunDirectory
from runner.predicting import worker
from runner.predicting.answering import answer
from runner.predicting.opened import Opened
from runner.predicting.request import Request
from tests.mixtures.made import MULTI_LABEL, TAGGING, classes, write_table
from tests.predicting.runs import hide_data, predict, result, rows, trained
from tests.simulated import SIMULATED, simulated
from tests.support import runner

ANIMALS, THINGS = ("cat", "dog", "emu"), ("mat", "hat", "roof", "sofa")
TEXTS = [f"the {animal} sat on the {thing}, twice" for animal in ANIMALS for thing in THINGS]
WORDS = [text.replace(",", " ,").split() for text in TEXTS]
TAGS = ["O", "B-animal", "B-thing"]


def tags(words: list[str]) -> list[str]:
    return ["B-animal" if w in ANIMALS else "B-thing" if w in THINGS else "O" for w in words]


def declared(path: Path, names: list[str], **columns: list) -> None:
    """A parquet file whose `label` says its classes as `datasets` writes it."""
    note = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(note)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    place = tmp_path_factory.mktemp("texts")
    for split, part in (("train", slice(None)), ("validation", slice(0, 6)), ("test", slice(3, 12, 2))):
        animals = [i // 4 for i in range(12)][part]
        declared(place / "a" / f"{split}.parquet", list(ANIMALS), text=TEXTS[part], label=animals)
        same = [int(i % 3 == 0) for i in range(12)][part]
        write_table(place / "b" / f"{split}.parquet", first=TEXTS[part], second=TEXTS[::-1][part], same=same)
        topics = [[k for k in range(3) if i % (k + 2) == 0] for i in range(12)][part]
        named = [tags(w) for w in WORDS][part]
        write_table(place / "c" / f"{split}.parquet", tokens=WORDS[part], ner=named, topics=topics)
    ner = {"column": "ner", "classes": TAGS}
    sources = {
        "a": {"path": "a", "labels": {"animal": "label"}},
        "b": {"path": "b", "text": ["first", "second"], "labels": {"same": {"column": "same", "classes": [0, 1]}}},
        "c": {"path": "c", "text": "tokens", "labels": {"ner": ner, "topics": "topics"}},
    }
    tasks = {
        "animal": classes(3),
        "same": classes(2) | {"class_names": ["other", "equal"]},
        "ner": {"_target_": TAGGING, "num_classes": 3, "class_names": TAGS},
        "topics": {"_target_": MULTI_LABEL, "num_classes": 3},
    }
    mixture = {"sources": sources, "tasks": tasks, "max_length": 16, "vocab_size": 200}
    made = trained(place, "sentences", mixture, "backbone=bert", "backbone.size=tiny", "sampler=all")
    hide_data(made, place)
    return made


def split(run: RunDirectory, name: str) -> Path:
    return run.path.parents[3] / name / "test.parquet"


def test_predictions_of_the_test_splits_are_those_of_the_evaluation(run, tmp_path) -> None:
    found = predict(run, tmp_path / "a", file=str(split(run, "a")), keep=["label"])
    assert list(found[0]) == ["row", "text", "label", "animal", "animal_probability"]
    assert {r["animal"] for r in found} <= set(ANIMALS)  # the data's own names
    right = np.mean([r["animal"] == ANIMALS[int(r["label"])] for r in found])
    assert right == pytest.approx(result(run, "animal")["accuracy"], abs=1e-7)
    found = predict(run, tmp_path / "b", file=str(split(run, "b")), keep=["same"])
    assert list(found[0]) == ["row", "first", "second", "same_given", "same", "same_probability"]
    right = np.mean([r["same"] == ("other", "equal")[int(r["same_given"])] for r in found])
    assert right == pytest.approx(result(run, "same")["accuracy"], abs=1e-7)
    found = predict(run, tmp_path / "c", file=str(split(run, "c")), keep=["ner", "topics"], format="jsonl", raw=True)
    assert [r["tokens"] for r in found] == WORDS[3:12:2]
    right = np.mean([a == b for r in found for a, b in zip(r["ner"], r["ner_given"], strict=True)])
    assert right == pytest.approx(result(run, "ner")["accuracy"], abs=1e-7)
    entries = [(str(k) in r["topics"]) == (k in r["topics_given"]) for r in found for k in range(3)]
    assert np.mean(entries) == pytest.approx(result(run, "topics")["accuracy"], abs=1e-7)
    for r in found:
        total = np.sum([r[f"ner={tag}"] for tag in TAGS], axis=0)
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert [r[f"topics={k}"] >= 0.5 for k in range(3)] == [str(k) in r["topics"] for k in range(3)]


def test_a_text_is_answered_without_a_folder(run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["the cat sat", "the dog"]
    assert worker.main(Request(run=str(run.path), texts=texts, device="cpu")) == 0
    said = capsys.readouterr()
    assert "note: left out: same: it compares two texts (first, second)" in said.err
    heads, *answers = said.out.splitlines()
    assert heads.split() == ["text", "animal", "ner", "topics"]
    assert [line.startswith(text) for line, text in zip(answers, texts, strict=True)] == [True, True]
    assert "the/" in answers[0] and " sat/" in answers[0]  # a tag beside every word
    assert not list(tmp_path.iterdir())
    assert worker.main(Request(run=str(run.path), texts=["a b"], pairs=["b a"], tasks=["same"], device="cpu")) == 0
    assert "a b | b a" in capsys.readouterr().out


def test_the_command_line_and_files_say_the_same(run, tmp_path) -> None:
    texts = TEXTS[:4]
    (tmp_path / "a.txt").write_text(texts[0] + "\n\n" + "\n".join(texts[1:]) + "\n")
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(f'"{t}",{i}\n' for i, t in enumerate(texts)))
    (tmp_path / "a.tsv").write_text("what\n" + "".join(f"{t}\n" for t in texts))
    shown = predict(run, tmp_path / "text", texts=texts, tasks=["animal"])
    for name, more in (("a.txt", {}), ("a.csv", {}), ("a.tsv", {"columns": ["what"]})):
        found = predict(run, tmp_path / name[2:], file=str(tmp_path / name), tasks=["animal"], **more)
        assert [r["animal_probability"] for r in found] == [r["animal_probability"] for r in shown]
        assert [r["row"] for r in found] == (["1", "3", "4", "5"] if name == "a.txt" else ["1", "2", "3", "4"])


def test_words_that_were_cut_off_have_no_tag(run, tmp_path, capsys) -> None:
    long = " ".join(["the cat sat on the mat"] * 5)
    (r,) = predict(run, tmp_path, texts=[long], tasks=["ner"], format="jsonl")
    assert r["text"] == long.split()
    assert len(r["ner"]) == 30
    assert None not in r["ner"][:10]
    assert r["ner"][-1] is None and r["ner_probability"][-1] is None
    assert "mat/?" in capsys.readouterr().out


def test_tags_stand_beside_their_words_in_csv(run, tmp_path) -> None:
    (r,) = predict(run, tmp_path / "a", texts=["the cat sat"], tasks=["ner", "topics"])
    assert r["text"] == "the cat sat"
    assert len(r["ner"].split()) == len(r["ner_probability"].split()) == 3
    (listed,) = predict(run, tmp_path / "b", texts=["the cat sat"], tasks=["ner", "topics"], format="jsonl")
    assert r["ner"] == " ".join(listed["ner"])
    assert r["topics"] == "; ".join(listed["topics"])


def test_rows_without_a_text_keep_their_place(run, tmp_path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n{"text": ""}\n[1]\n{"text": 5}\n{oops\n{"text": "a dog"}\n')
    found = predict(run, tmp_path, expect=1, file=str(tmp_path / "a.jsonl"), tasks=["animal"])
    assert [bool(r["animal"]) for r in found] == [True, False, False, False, False, True]
    said = capsys.readouterr().err
    assert "4 of 6 texts lack a prediction" in said
    for words in ("row 2: column 'text' has no text", "row 3: it is not an object", "row 4: column 'text' is no text"):
        assert words in said
    assert "row 5: it is not JSON" in said


def test_an_export_needs_no_data_either(run, tmp_path) -> None:
    export(run, tmp_path / "out", "best", None, None)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    texts = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[0])["input_ids"]
    assert texts == next(iter(Opened.open(run, "best", "cpu").parts.mixture.encoder.encode(TEXTS[:1]))).ids


def test_a_model_that_has_diverged_is_told(run, tmp_path, capsys) -> None:
    opened = Opened.open(run, "best", "cpu")
    for parameter in opened.model.heads["animal"].parameters():
        parameter.data.fill_(float("nan"))
    request = Request(run=str(run.path), texts=["the cat"], to=str(tmp_path / "out"), tasks=["animal", "topics"])
    assert answer(opened, ["animal", "topics"], request) == 1
    assert "row 1: the model's prediction of 'animal' is not finite" in capsys.readouterr().err
    assert [(r["animal"], r["topics"] is None) for r in rows(tmp_path / "out")] == [("", False)]


@pytest.mark.parametrize(
    ("content", "given", "words"),
    [
        (
            "what,id\nx,1\n",
            {},
            ["task 'animal' (and 3 more) reads 'text', which the file does not have", "--columns NAME"],
        ),
        ("what,id\nx,1\n", {"columns": ["wat"]}, ["--columns: ", "has no column 'wat'", "did you mean 'what'?"]),
        ("text,id\nx,1\n", {"keep": ["idx"]}, ["--keep: ", "did you mean 'id'?"]),
        ("text,id\nx,1\n", {"tasks": ["same"]}, ["task 'same' reads 'first' and 'second'"]),
        ("text,text\nx,1\n", {}, ["columns twice: text"]),
        ("", {}, ["is empty"]),
        ("text\n", {}, ["has no texts"]),
    ],
)
def test_files_that_do_not_fit(run, tmp_path, capsys, content, given, words) -> None:
    (tmp_path / "a.csv").write_text(content)
    request = Request(run=str(run.path), to=str(tmp_path / "out"), file=str(tmp_path / "a.csv"), **given)
    assert worker.main(request) == 2
    said = capsys.readouterr().err
    assert all(w in said for w in words), said
    assert not (tmp_path / "out").exists()


def test_on_another_device_it_says_the_same(run, tmp_path) -> None:
    request = Request(run=str(run.path), texts=TEXTS, to=str(tmp_path / "a"))
    opened = Opened.open(run, "best", "cpu")
    tasks = ["animal", "ner", "topics"]
    assert answer(opened, tasks, request) == 0
    with simulated():
        opened.model.to(SIMULATED)
        opened.device = torch.device(SIMULATED)
        assert answer(opened, tasks, replace(request, to=str(tmp_path / "b"))) == 0
    for there, here in zip(rows(tmp_path / "b"), rows(tmp_path / "a"), strict=True):
        for column, value in here.items():
            if column == "animal_probability":
                assert float(there[column]) == pytest.approx(float(value), abs=1e-5)
            elif not column.endswith("_probability"):
                assert there[column] == value


def test_the_front_end_answers_without_torch(run, tmp_path) -> None:
    (tmp_path / "a.csv").write_text("what\nx\n")
    code = (
        "import sys; from runner.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code if not {'torch', 'transformers', 'datasets'} & sys.modules.keys() else 99)"
    )
    arguments = ["predict", str(run.path), "--file", str(tmp_path / "a.csv"), "--to", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "say where the texts are: --columns NAME" in done.stderr


@pytest.mark.slow
def test_the_whole_command(run, tmp_path) -> None:
    (tmp_path / "a.csv").write_text("what\nx\n")
    done = runner(
        "predict", str(run.path), "--file", str(tmp_path / "a.csv"), "--to", str(tmp_path / "out"),
        "--columns", "what", "--tasks", "animal", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out")[0]["what"] == "x"


def test_other_encodings_are_said(run, tmp_path, capsys) -> None:
    request = Request(run=str(run.path), to=str(tmp_path / "out"), file=str(tmp_path / "a.csv"), device="cpu")
    for encoding in ("latin1", "utf-16"):
        (tmp_path / "a.csv").write_bytes("text\ncafé\n".encode(encoding))
        assert worker.main(request) == 2
        said = capsys.readouterr().err
        assert "is not in UTF-8" in said
        assert f"iconv -f {encoding} " in said
    assert not (tmp_path / "out").exists()


def test_files_that_are_damaged_are_said(run, tmp_path, capsys) -> None:
    for name, content in (("a.parquet", "no parquet"), ("a.json", "[1, "), ("a.jsonl", "{oops\n"), ("a.json", "[1]")):
        (tmp_path / name).write_text(content)
        request = Request(run=str(run.path), to=str(tmp_path / "out"), file=str(tmp_path / name))
        assert worker.main(request) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / name}' has no readable row" in said or f"{tmp_path / name} cannot be read" in said
