"""What is wrong with a user's own files is said before the training, wherever it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.errors import UserError
from runner.mixtures.images import Images
from runner.mixtures.text import Texts
from tests.mixtures.made import CLASSIFICATION, REGRESSION, png, problems

HEADER = "text,mood,topic"
TRAIN = [f"words number {i},{'good' if i % 2 else 'bad'},{'food' if i % 3 else 'travel'}" for i in range(20)]
TEST = ["other words,good,food", "more words,bad,travel"]


def write(folder: Path, train: list[str], test: list[str], header: str = HEADER, **encoding: str) -> Path:
    folder.mkdir()
    for split, lines in (("train", train), ("test", test)):
        (folder / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n", **encoding)
    return folder


def texts(folder: Path) -> Texts:
    tasks = {task: {"_target_": CLASSIFICATION, "num_classes": 2} for task in ("mood", "topic")}
    source = {"path": str(folder), "labels": {"mood": "mood", "topic": "topic"}}
    return Texts("nowhere", tasks=tasks, sources={"d": source}, vocab_size=60)


def refused(mixture: Texts | Images) -> str:
    assert mixture.check() == []
    with pytest.raises(UserError) as caught:
        mixture.setup(None)
    return problems(caught.value)


def test_a_wrong_label_of_the_test_split(tmp_path):
    found = refused(texts(write(tmp_path / "d", TRAIN, [TEST[0], "more words,goood,food"])))
    assert "'goood' in row 1 of 'test' is no label of task 'mood'" in found
    assert "did you mean 'good'?" in found


def test_classes_that_train_lacks_can_be_named(tmp_path):
    found = refused(texts(write(tmp_path / "d", [line.replace("good", "bad") for line in TRAIN], TEST)))
    assert "{column: mood, classes: […]}" in found


def test_a_task_without_labels_in_train(tmp_path):
    nothing = [line.replace("good", "").replace("bad", "") for line in TRAIN]
    found = refused(texts(write(tmp_path / "d", nothing, TEST)))
    assert found.startswith("error: no training example has a label of task 'mood': column 'mood' of data set 'd'")
    assert "tasks=[topic]" in found
    assert found.count("error:") == 1


def test_a_test_split_whose_labels_are_kept_secret(tmp_path):
    folder = write(tmp_path / "d", TRAIN, ["other words,,food", "more words,,travel"])
    found = refused(texts(folder))
    assert "no example of split 'test' has a label of task 'mood'" in found
    assert "mixture.sources.d.splits.test=null mixture.sources.d.test=0.1" in found
    tasks = {task: {"_target_": CLASSIFICATION, "num_classes": 2} for task in ("mood", "topic")}
    source = {"path": str(folder), "labels": {"mood": "mood", "topic": "topic"}, "splits": {"test": None}, "test": 0.1}
    mixture = Texts("nowhere", tasks=tasks, sources={"d": source}, vocab_size=60)
    mixture.setup(None)
    assert len(mixture.datasets("test")["d"]) == 2


@pytest.mark.parametrize("empty", ["train", "test"])
def test_splits_without_rows(tmp_path, empty):
    lines = {"train": TRAIN, "test": TEST} | {empty: []}
    assert f"data set 'd' has no rows in its split '{empty}'" in refused(texts(write(tmp_path / "d", **lines)))


@pytest.mark.parametrize(("encoding", "said"), [("latin-1", "iconv -f latin1"), ("utf-16", "iconv -f utf-16")])
def test_csv_in_another_encoding(tmp_path, encoding, said):
    found = refused(texts(write(tmp_path / "d", [*TRAIN, "un café,good,food"], TEST, encoding=encoding)))
    assert "train.csv is not in UTF-8" in found
    assert said in found


def test_a_column_named_twice(tmp_path):
    assert "1 columns twice: mood" in refused(texts(write(tmp_path / "d", TRAIN, TEST, header="text,mood,mood")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_semicolons_tabs_and_carriage_returns(tmp_path, encoding):
    write(tmp_path / "d", TRAIN, TEST, encoding=encoding)
    for kind, (split, mark) in {"semi": ("train", ";"), "tabs": ("test", "\t")}.items():
        file = tmp_path / "d" / f"{split}.csv"
        assert kind
        file.write_bytes(file.read_bytes().replace(b",", mark.encode()).replace(b"\n", b"\r\n"))
    mixture = texts(tmp_path / "d")
    mixture.setup(None)
    assert [len(mixture.datasets(s)["d"]) for s in ("train", "validation", "test")] == [18, 2, 2]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_as_a_list_and_as_lines_and_empty_texts_as_no_label(tmp_path, kind):
    rows = [dict(zip(HEADER.split(","), line.split(","), strict=True)) for line in TRAIN]
    rows[3]["mood"], rows[4]["mood"] = "", None
    (tmp_path / "d").mkdir()
    for split in ("train", "test"):
        lines = json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "d" / f"{split}.{kind}").write_text(lines, encoding="utf-8-sig")
    mixture = texts(tmp_path / "d")
    mixture.setup(None)
    test = mixture.datasets("test")["d"]
    found = [test.example(i, None).targets.get("mood") for i in range(6)]
    assert [None if value is None else int(value) for value in found] == [0, 1, 0, None, None, 1]


def test_a_list_of_something_else(tmp_path):
    (tmp_path / "d").mkdir()
    for split in ("train", "test"):
        (tmp_path / "d" / f"{split}.json").write_text("[1, 2]")
    assert "its list must hold {column: value} only" in refused(texts(tmp_path / "d"))


def test_images_that_are_not_there(tmp_path):
    """A table of paths names what is lost in any split; the files that are there are not opened for that."""
    (tmp_path / "d" / "inside").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "d" / "inside" / f"{number}.png").write_bytes(b"" if number else png_of_one_pixel())
    for split, count in (("train", 10), ("test", 12)):
        lines = [f"inside/{i}.png,{i}.5" for i in range(count)]
        (tmp_path / "d" / f"{split}.csv").write_text("\n".join(["file,age", *lines]) + "\n")
    source = {"path": str(tmp_path / "d"), "image": "file", "labels": {"age": "age"}}
    mixture = Images("", tasks={"age": {"_target_": REGRESSION}}, sources={"d": source}, size=[8, 8])
    found = refused(mixture)
    assert "2 of 12 images of 'test' are not there, such as" in found
    assert "inside/10.png (column 'file')" in found


def png_of_one_pixel() -> bytes:
    import numpy as np

    return png(np.zeros((1, 1, 3), np.uint8))
