"""Mixtures of texts."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import yaml

from runner.config.build import build
from runner.errors import UserError
from runner.mixtures.stream import eval_batches
from runner.mixtures.tokenizer import WordPiece
from tests.mixtures.made import MULTI_LABEL, REGRESSION, TAGGING, classes, pieces, write_table

TEXTS = [
    f"the {animal} sat on the {thing}" for animal in ("cat", "dog", "emu") for thing in ("mat", "hat", "roof", "sofa")
]


def texts(data_root, sources, tasks, **keys):
    config = {"_target_": "runner.mixtures.text.Texts", "sources": sources, "tasks": tasks, **keys}
    return build(config, str(data_root), where="mixture")


def opened(data_root, sources, tasks, **keys):
    mixture = texts(data_root, sources, tasks, **keys)
    assert mixture.check() == []
    mixture.setup(None)
    return mixture


def read(dataset, mixture):
    """The texts that the token numbers stand for."""
    return [pieces(mixture._encoder, dataset.example(i, None).inputs["input_ids"]) for i in range(len(dataset))]


@pytest.fixture
def two(tmp_path):
    write_table(tmp_path / "a" / "train.parquet", text=TEXTS, label=[i % 3 for i in range(12)])
    write_table(tmp_path / "a" / "validation.parquet", text=TEXTS[:4], label=[0, 1, 2, 0])
    write_table(tmp_path / "a" / "test.parquet", text=TEXTS[4:6], label=[2, 1])
    write_table(tmp_path / "b" / "train.parquet", text=["quite other words", "and some more"] * 5, label=[0, 1] * 5)
    write_table(tmp_path / "b" / "test.parquet", text=["other words"], label=[1])
    sources = {"a": {"path": "a", "labels": {"a": "label"}}, "b": {"path": "b", "labels": {"b": "label"}}}
    return tmp_path, sources, {"a": classes(3), "b": classes(2)}


def test_texts_labels_and_ids(two):
    mixture = opened(*two)
    dataset = mixture.datasets("validation")["a"]
    assert (dataset.name, dataset.tasks, len(dataset)) == ("a", ("a",), 4)
    assert read(dataset, mixture) == TEXTS[:4]
    example = dataset.example(1, None)
    assert example.id == 'a/validation/1 "the cat sat on the hat"'
    assert example.inputs["input_ids"].dtype == np.int64
    assert example.inputs["attention_mask"].tolist() == [1] * len(example.inputs["input_ids"])
    assert [int(dataset.example(i, None).targets["a"]) for i in range(4)] == [0, 1, 2, 0]


def test_what_the_backbone_is_told(two):
    spec = texts(*two, max_length=30, vocab_size=50).setup(None)
    assert (spec.kind, spec.pad_token_id, spec.max_length) == ("text", 0, 32)
    assert spec.vocab_size <= 50
    mixture = opened(*two, max_length=5)
    assert mixture.setup(None).max_length == 8
    assert {len(mixture.datasets("train")["a"].example(i, None).inputs["input_ids"]) for i in range(12)} == {5}
    (group,) = eval_batches(mixture.datasets("train")["a"], batch_size=12, pad_token_id=0)
    assert group.inputs["input_ids"].shape == (12, 8)


def test_carved_texts_keep_their_labels(two):
    mixture = opened(*two, validation=4)
    train, validation = mixture.datasets("train")["b"], mixture.datasets("validation")["b"]
    assert (len(train), len(validation)) == (6, 4)
    for dataset in (train, validation):
        for i, text in enumerate(read(dataset, mixture)):
            assert int(dataset.example(i, None).targets["b"]) == ["quite other words", "and some more"].index(text)
            assert dataset.example(i, None).id.startswith(f"b/train/{dataset.numbers[i]} ")


def test_the_vocabulary_is_that_of_all_sources_and_of_training_texts_only(two):
    """Experts of single tasks must share it with the joint model, and no held-out text may shape it."""
    data_root, sources, tasks = two
    joint = opened(data_root, sources, tasks)
    alone = opened(data_root, sources, {"b": tasks["b"]})
    assert list(alone.datasets("train")) == ["b"]
    vocabularies = [m._encoder._tokenizer.get_vocab() for m in (joint, alone)]
    assert vocabularies[0] == vocabularies[1]
    train, _ = joint.rows("b", "train")
    seen = [*TEXTS, *[train.table["text"][int(i)].as_py() for i in joint.rows("b", "train")[1]]]
    expected = WordPiece(seen, vocab_size=8000, lowercase=True, max_length=128)
    assert vocabularies[0] == expected._tokenizer.get_vocab()


def test_the_fingerprint_is_that_of_the_vocabulary(two):
    data_root, sources, tasks = two
    first = texts(*two).setup(None).learned
    assert texts(data_root, sources, {"a": tasks["a"]}).setup(None).learned == first  # experts share it
    assert texts(*two, lowercase=False, max_length=9).setup(None).learned == first  # there is no upper case here
    assert texts(*two, vocab_size=40).setup(None).learned != first
    write_table(data_root / "a" / "train.parquet", text=[*TEXTS[:11], "a zebra"], label=[i % 3 for i in range(12)])
    assert texts(*two).setup(None).learned != first


def test_sources_that_the_vocabulary_needs_must_be_there(two):
    data_root, sources, tasks = two
    sources["a"]["path"] = "nowhere"
    (problem,) = texts(data_root, sources, {"b": tasks["b"]}).check()
    assert "data set 'a' is not there" in problem.what
    assert texts(data_root, sources, {"b": tasks["b"]}, tokenizer="someone/bert").check() == []  # none is learned


def test_pairs(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", first=TEXTS, second=TEXTS[::-1], label=[0, 1] * 6)
    source = {"path": str(tmp_path), "text": ["first", "second"], "labels": {"same": "label"}}
    mixture = opened(tmp_path, {"p": source}, {"same": classes(2)})
    example = mixture.datasets("test")["p"].example(0, None)
    sep = mixture._encoder._tokenizer.token_to_id("[SEP]")
    assert (example.inputs["input_ids"] == sep).sum() == 2
    assert example.id == f'p/test/0 "{TEXTS[0]} | {TEXTS[-1]}"'


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_other_files_and_other_columns(tmp_path, suffix):
    import pandas as pd

    frame = pd.DataFrame({"question": TEXTS, "kind": ["x", "y", "z"] * 4, "score": [0.5, None, 2.0] * 4})
    for split in ("train", "test"):
        path = tmp_path / f"{split}.{suffix}"
        if suffix == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    source = {"path": str(tmp_path), "text": "question", "labels": {"kind": "kind", "score": "score"}}
    mixture = opened(tmp_path, {"q": source}, {"kind": classes(3), "score": {"_target_": REGRESSION}})
    dataset = mixture.datasets("test")["q"]
    assert read(dataset, mixture) == TEXTS
    found = [{k: v.item() for k, v in dataset.example(i, None).targets.items()} for i in range(3)]
    assert found == [{"kind": 0, "score": 0.5}, {"kind": 1}, {"kind": 2, "score": 2.0}]


def test_several_labels_per_text(tmp_path):
    task = {"_target_": MULTI_LABEL, "num_classes": 3}
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", text=TEXTS[:3], labels=[[0, 2], [], [1]])
    source = {"path": str(tmp_path), "labels": {"e": "labels"}, "validation": 1}
    dataset = opened(tmp_path, {"e": source}, {"e": task}).datasets("test")["e"]
    (group,) = eval_batches(dataset, batch_size=3, pad_token_id=0)
    assert group.targets["e"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_tags_of_words(tmp_path):
    """The first token of a word has its tag; cut words, other tokens, special tokens and padding have none."""
    words = [["the", "catdoghat", "sat"], ["emu"], ["a", "dog", "sat", "on", "the", "mat"]] * 4
    tags = [["O", "B-x", "I-x"], ["B-x"], ["O", "B-x", "O", "O", "O", "O"]] * 4
    tags[4] = None
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", words=words, tags=tags)
    task = {"_target_": TAGGING, "num_classes": 3}
    source = {
        "path": str(tmp_path),
        "text": "words",
        "labels": {"ner": {"column": "tags", "classes": ["O", "B-x", "I-x"]}},
    }
    mixture = opened(tmp_path, {"n": source}, {"ner": task}, vocab_size=40, max_length=7)
    dataset = mixture.datasets("test")["n"]
    for i in range(3):
        example = dataset.example(i, None)
        (encoded,) = mixture._encoder.encode([words[i]])
        expected, before = [], None
        for word in encoded.words:
            expected.append(-100 if word is None or word == before else ["O", "B-x", "I-x"].index(tags[i][word]))
            before = word
        assert example.targets["ner"].tolist() == expected
        assert len(expected) <= 7
    assert "ner" not in dataset.example(4, None).targets
    (group,) = eval_batches(dataset, batch_size=12, pad_token_id=0)
    assert group.targets["ner"].shape == group.inputs["input_ids"].shape == (12, 8)


def test_tags_need_words(tmp_path):
    task = {"_target_": TAGGING, "num_classes": 3}
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", text=TEXTS[:3], words=[["a", "b"]] * 3, tags=[[0, 1], [2], [1, 1]])
    source = {"path": str(tmp_path), "labels": {"ner": "tags"}, "validation": 1}
    with pytest.raises(UserError, match="is not a list of words"):
        opened(tmp_path, {"n": source}, {"ner": task}).datasets("test")
    with pytest.raises(UserError, match="n/test/1 has more words than tags"):
        opened(tmp_path, {"n": source | {"text": "words"}}, {"ner": task}).datasets("test")


def test_the_tokenizer_of_the_checkpoint_or_of_the_key(two, tmp_path):
    from transformers import BertTokenizerFast

    sizes = {}
    for name, count in (("large", 12), ("small", 2)):
        trained = WordPiece(TEXTS[:count], vocab_size=500, lowercase=True, max_length=16)
        BertTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=20).save_pretrained(tmp_path / name)
        sizes[name] = trained.vocab_size
    assert sizes["large"] > sizes["small"]
    mixture = texts(*two)
    spec = mixture.setup(str(tmp_path / "large"))
    assert (spec.vocab_size, spec.pad_token_id, spec.max_length) == (sizes["large"], 0, 24)
    dataset = mixture.datasets("test")["a"]
    assert (
        mixture._encoder._tokenizer.decode(
            dataset.example(0, None).inputs["input_ids"].tolist(), skip_special_tokens=True
        )
        == TEXTS[4]
    )
    chosen = texts(*two, tokenizer=str(tmp_path / "small"))
    assert chosen.setup(None).vocab_size == chosen.setup(str(tmp_path / "large")).vocab_size == sizes["small"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": "texts"}, "has no column 'texts'"),
        ({"text": "label"}, "column 'label' holds int64, not texts"),
        ({"text": "gaps"}, "row 1 of 'train' has no text"),
    ],
)
def test_columns_that_are_no_texts(tmp_path, change, expected):
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", text=TEXTS, label=[0] * 12, gaps=["x", None] * 6)
    mixture = texts(tmp_path, {"a": {"path": str(tmp_path), "labels": {"a": "label"}} | change}, {"a": classes(2)})
    with pytest.raises(UserError, match=expected):
        mixture.setup(None)


def test_three_columns_are_refused(two):
    data_root, sources, tasks = two
    sources["a"]["text"] = ["a", "b", "c"]
    (problem,) = texts(data_root, sources, tasks).check()
    assert "must name one column, or two for pairs" in problem.what


def test_workers_see_the_same(two):
    dataset = opened(*two).datasets("train")["a"]
    here, there = (list(eval_batches(dataset, batch_size=5, num_workers=n, pad_token_id=0)) for n in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert a.ids == b.ids
        assert (a.inputs["input_ids"] == b.inputs["input_ids"]).all()


def test_a_worker_needs_neither_torch_nor_tokenizers(two, tmp_path):
    (tmp_path / "set.pickle").write_bytes(pickle.dumps(opened(*two).datasets("train")["b"]))
    code = (
        "import pickle, sys\n"
        "pickle.load(open('set.pickle', 'rb')).example(0, None)\n"
        "print(sorted({'torch', 'pyarrow', 'datasets', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["intents", "sentences"])
def test_the_shipped_mixtures_read_what_pandas_reads(runner_data, root, name):
    import pandas as pd

    config = yaml.safe_load((root / "configs" / "mixture" / f"{name}.yaml").read_text())
    config.pop("defaults")
    config["tasks"] = {task: classes(2) | given for task, given in config["tasks"].items()}
    mixture = build(config, str(runner_data))
    assert mixture.check() == []
    spec = mixture.setup(None)
    for split in ("train", "validation", "test"):
        for dataset in mixture.datasets(split).values():
            frame = pd.read_parquet(runner_data / "hub" / dataset.name / f"{dataset.split}.parquet")
            for task in dataset.tasks:
                column = config["sources"][dataset.name]["labels"][task]
                np.testing.assert_array_equal(
                    dataset._targets[task][dataset.numbers], frame[column].to_numpy()[dataset.numbers]
                )
            exact = 0
            for i in np.random.default_rng(0).integers(0, len(dataset), 50):
                text = " ".join(frame["text"].iloc[dataset.numbers[i]].split()).lower()
                numbers = dataset.example(int(i), None).inputs["input_ids"]
                assert 0 < numbers.max() < spec.vocab_size
                said = pieces(mixture._encoder, numbers).replace(" ", "")
                exact += text.replace(" ", "").startswith(said)
            assert exact >= 30, f"only {exact} of 50 texts of {dataset.name} can be read back"


def test_more_sources_as_the_yaml_says(runner_data):
    sources = {
        "subj": {"path": "hub/subj", "test": 0.2, "labels": {"subj": "label"}},
        "rte": {
            "path": "hub/rte",
            "text": ["sentence1", "sentence2"],
            "labels": {"rte": "label"},
            "splits": {"test": "validation"},
        },
        "cola": {"path": "hub/cola", "text": "sentence", "labels": {"cola": "label"}, "splits": {"test": "validation"}},
    }
    mixture = opened(runner_data, sources, {name: classes(2) for name in sources}, vocab_size=2000)
    sizes = {s: {n: len(d) for n, d in mixture.datasets(s).items()} for s in ("train", "validation", "test")}
    assert sizes["test"] == {"subj": 2000, "rte": 277, "cola": 1043}
    assert {n: sizes["train"][n] + sizes["validation"][n] for n in sources} == {"subj": 8000, "rte": 2490, "cola": 8551}
