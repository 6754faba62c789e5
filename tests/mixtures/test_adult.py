"""Tables, and the shipped one against pandas."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from runner.config.build import build
from runner.errors import UserError
from runner.mixtures.stream import eval_batches
from runner.specs import InputSpec
from tests.mixtures.made import BINARY, REGRESSION, classes, write_table

YES = {"_target_": BINARY}


def table(data_root, sources, tasks, **keys):
    config = {"_target_": "runner.mixtures.tables.Table", "sources": sources, "tasks": tasks, **keys}
    return build(config, str(data_root), where="mixture")


HEADER = "age, job, pay, note, rich, kids"
ROWS = [
    "30, Clerk, 0, x, >50K, 2",
    "40, Smith, 99, y, <=50K, 0",
    "50, ?, , x, >50K, 1",
    ", Clerk, 7, z, <=50K,",
] * 5


@pytest.fixture
def small(tmp_path):
    (tmp_path / "people.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    sources = {"people": {"path": "people.csv", "labels": {"rich": {"column": "rich", "positive": ">50K"}}}}
    keys = {"numeric": ["age", "pay"], "categorical": ["job", "note"], "unknown": ["?"], "test": 4, "validation": 4}
    return tmp_path, sources, {"rich": YES}, keys


def all_examples(mixture):
    return [
        (d.numbers[i], d.example(i, None))
        for split in ("train", "validation", "test")
        for d in mixture.datasets(split).values()
        for i in range(len(d))
    ]


def test_numbers_are_standardised_by_the_training_rows(small):
    data_root, sources, tasks, keys = small
    mixture = table(data_root, sources, tasks, **keys, log=["pay"])
    assert mixture.check() == []
    inputs = mixture.setup(None)
    assert inputs == InputSpec("table", num_numeric=2, cardinalities=(3, 4), learned=inputs.learned)
    assert len(inputs.learned) == 16
    raw = np.array([[30, 0], [40, np.log(100)], [50, np.nan], [np.nan, np.log(8)]] * 5)
    chosen = mixture.datasets("train")["people"].numbers
    mean, std = np.nanmean(raw[chosen], axis=0), np.nanstd(raw[chosen], axis=0)
    expected = np.nan_to_num((raw - mean) / std)
    examples = all_examples(mixture)
    assert sorted(row for row, _ in examples) == list(range(20))
    for row, example in examples:
        np.testing.assert_allclose(example.inputs["numeric"], expected[row], rtol=1e-5, atol=1e-6)
        assert example.inputs["numeric"].dtype == np.float32
        assert float(example.targets["rich"]) == (ROWS[row].split(", ")[4] == ">50K")
        assert example.id == f"people/train/{row}"


def test_categories_are_codes_and_unknown_is_zero(small):
    data_root, sources, tasks, keys = small
    mixture = table(data_root, sources, tasks, **keys)
    mixture.setup(None)
    job, note = {"Clerk": 1, "Smith": 2, "?": 0}, {"x": 1, "y": 2, "z": 3}
    for row, example in all_examples(mixture):
        values = ROWS[row].split(", ")
        assert example.inputs["categorical"].tolist() == [job[values[1]], note[values[3]]]
        assert example.inputs["categorical"].dtype == np.int64


def test_a_category_that_training_has_not_is_unknown(tmp_path):
    write_table(tmp_path / "train.parquet", c=["a", "b", None] * 4, y=[0, 1, 1] * 4)
    write_table(tmp_path / "test.parquet", c=["b", "new", None], y=[0, 1, 1])
    mixture = table(
        tmp_path, {"d": {"path": str(tmp_path), "labels": {"y": "y"}}}, {"y": YES}, numeric=[], categorical=["c"]
    )
    assert mixture.setup(None).cardinalities == (3,)
    (group,) = eval_batches(mixture.datasets("test")["d"], batch_size=3)
    assert group.inputs["categorical"].tolist() == [[2], [0], [0]]
    assert "numeric" not in group.inputs
    assert group.targets["y"].tolist() == [0, 1, 1]


def test_constant_and_empty_columns_do_no_harm(tmp_path):
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", one=[5.0] * 6, none=[None] * 6, flag=[True, False] * 3, y=[0, 1] * 3)
    source = {"path": str(tmp_path), "labels": {"y": "y"}}
    mixture = table(tmp_path, {"d": source}, {"y": YES}, numeric=["one", "none", "flag"], categorical=[])
    mixture.setup(None)
    (group,) = eval_batches(mixture.datasets("test")["d"], batch_size=6)
    assert group.inputs["numeric"].isfinite().all()
    assert (group.inputs["numeric"][:, :2] == 0).all()
    assert "categorical" not in group.inputs


def test_several_tables_share_one_encoding(tmp_path):
    for name, low in (("north", 0), ("south", 100)):
        for split in ("train", "test"):
            write_table(tmp_path / name / f"{split}.parquet", x=[low, low + 1] * 5, c=[name, "both"] * 5, y=[0.5] * 10)
    sources = {n: {"path": n, "labels": {n: "y"}, "validation": 2} for n in ("north", "south")}
    tasks = {n: {"_target_": REGRESSION} for n in sources}
    inputs = {}
    for chosen in (tasks, {"south": tasks["south"]}):
        mixture = table(tmp_path, sources, chosen, numeric=["x"], categorical=["c"])
        assert mixture.setup(None).cardinalities == (4,)
        assert list(mixture.datasets("test")) == list(chosen)
        inputs[len(chosen)] = mixture.datasets("test")["south"].example(0, None).inputs
    for key in ("numeric", "categorical"):  # a single-task model reads the same as the joint one
        np.testing.assert_array_equal(inputs[1][key], inputs[2][key])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"categorical": ["job", "rich"]},
            "column 'rich' of data set 'people' is the label of task 'rich' and also an input",
        ),
        ({"numeric": ["age", "kids"]}, "column 'kids' of data set 'people' is the label of task 'kids'"),
        ({"numeric": [], "categorical": []}, "both empty"),
        ({"log": ["job"]}, "'mixture.log' names 'job'"),
        ({"categorical": ["age"]}, "column 'age' is in mixture.numeric and in mixture.categorical"),
    ],
)
def test_columns_that_leak_or_clash(small, change, expected):
    data_root, sources, tasks, keys = small
    sources["people"]["labels"]["kids"] = "kids"  # a task that this run leaves out
    (problem,) = table(data_root, sources, tasks, **(keys | change)).check()
    assert expected in problem.what


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"numeric": ["job"], "categorical": []}, "column 'job' holds something that is not a number"),
        ({"numeric": ["agee"]}, "has no column 'agee'"),
        ({"categorical": ["jobs"]}, "has no column 'jobs'"),
    ],
)
def test_columns_that_cannot_be_read(small, change, expected):
    data_root, sources, tasks, keys = small
    mixture = table(data_root, sources, tasks, **(keys | change))
    with pytest.raises(UserError, match=expected):
        mixture.setup(None)


def test_a_misspelt_positive_value(small):
    data_root, sources, tasks, keys = small
    sources["people"]["labels"]["rich"]["positive"] = "> 50K"
    mixture = table(data_root, sources, tasks, **keys)
    with pytest.raises(UserError, match="no row of 'train' is '> 50K'") as caught:
        mixture.setup(None)
    assert "did you mean '>50K'?" in str(caught.value)


def test_missing_labels_have_no_target(small):
    data_root, sources, _, keys = small
    sources["people"]["labels"] = {"kids": "kids"}
    mixture = table(data_root, sources, {"kids": classes(3)}, **keys)
    mixture.setup(None)
    for row, example in all_examples(mixture):
        assert ("kids" in example.targets) == (row % 4 != 3)


# ---- the shipped one ----------------------------------------------------------------------------------------------


def adult(root, data_root):
    config = yaml.safe_load((root / "configs" / "mixture" / "adult.yaml").read_text())
    config.pop("defaults")
    config["tasks"] = {"income": YES, "never_married": YES}
    return config, build(config, str(data_root))


def test_no_input_of_the_shipped_table_tells_a_label(root):
    config, _ = adult(root, "nowhere")
    inputs = {*config["numeric"], *config["categorical"]}
    assert not inputs & {"income", "marital-status", "relationship"}
    assert len(inputs) == 10


def test_missing_data(root, tmp_path):
    _, mixture = adult(root, tmp_path)
    (problem,) = mixture.check()
    assert str(tmp_path / "adult" / "adult.csv") in problem.what
    assert "mixture=rooms needs no files" in problem.hint


def test_the_shipped_table_reads_what_pandas_reads(runner_data, root):
    import pandas as pd

    config, mixture = adult(root, runner_data)
    assert mixture.check() == []
    spec = mixture.setup(None)
    frame = pd.read_csv(runner_data / "adult" / "adult.csv", skipinitialspace=True)
    parts = {s: mixture.datasets(s)["adult"] for s in ("train", "validation", "test")}
    assert sorted(i for part in parts.values() for i in part.numbers.tolist()) == list(range(len(frame)))
    assert len(parts["test"]) == round(0.2 * len(frame))
    numbers = frame[config["numeric"]].astype(float)
    numbers[config["log"]] = np.log1p(numbers[config["log"]])
    train = frame.iloc[parts["train"].numbers]
    mean, std = numbers.loc[train.index].mean(), numbers.loc[train.index].std(ddof=0)
    expected = ((numbers - mean) / std).to_numpy()
    codes = {c: {v: i + 1 for i, v in enumerate(sorted(set(train[c]) - {"?"}))} for c in config["categorical"]}
    assert spec.cardinalities == tuple(len(codes[c]) + 1 for c in config["categorical"])
    positive = {"income": frame["income"] == ">50K", "never_married": frame["marital-status"] == "Never-married"}
    assert positive["income"].mean() == pytest.approx(0.24, abs=0.005)  # the data's own description
    assert positive["never_married"].mean() == pytest.approx(0.33, abs=0.005)
    for part in parts.values():
        for i in range(0, len(part), 7):
            example, row = part.example(i, None), part.numbers[i]
            np.testing.assert_allclose(example.inputs["numeric"], expected[row], rtol=1e-4, atol=1e-5)
            found = [codes[c].get(frame[c].iloc[row], 0) for c in config["categorical"]]
            assert example.inputs["categorical"].tolist() == found
            assert {t: bool(v) for t, v in example.targets.items()} == {
                t: bool(p.iloc[row]) for t, p in positive.items()
            }


def labels_of(mixture, split, task):
    dataset = mixture.datasets(split)["people"]
    return {(e := dataset.example(i, None)).id: e.targets.get(task) for i in range(len(dataset))}


def noisy(tmp_path, noise):
    rows = "".join(f"{i},{i % 2},{i / 10}\n" for i in range(200))
    (tmp_path / "people.csv").write_text("x,flag,pay\n" + rows + "7,,\n")
    sources = {"people": {"path": "people.csv", "labels": {"flag": "flag", "pay": "pay"}}}
    tasks = {"flag": YES, "pay": {"_target_": REGRESSION}}
    keys = {"test": 20, "validation": 20, "label_noise": noise}
    made = table(tmp_path, sources, tasks, numeric=["x"], categorical=[], **keys)
    if not made.check():
        made.setup(None)
    return made


def test_label_noise_shuffles_a_share_of_the_training_labels(tmp_path):
    clean, dirty = noisy(tmp_path, {}), noisy(tmp_path, {"pay": 0.5})
    before, after = labels_of(clean, "train", "pay"), labels_of(dirty, "train", "pay")
    changed = [i for i in before if before[i] is not None and before[i] != after[i]]
    assert 70 <= len(changed) <= 81  # half of 161, less what stayed by chance
    assert sorted(v for v in before.values() if v is not None) == sorted(v for v in after.values() if v is not None)
    assert {i for i, v in before.items() if v is None} == {i for i, v in after.items() if v is None}
    assert labels_of(clean, "train", "flag") == labels_of(dirty, "train", "flag")
    for split in ("validation", "test"):
        assert labels_of(clean, split, "pay") == labels_of(dirty, split, "pay")


def test_label_noise_is_the_same_every_time(tmp_path):
    one, two = (labels_of(noisy(tmp_path, {"pay": 0.5}), "train", "pay") for _ in range(2))
    assert one == two


def test_label_noise_of_a_task_that_does_not_exist(tmp_path):
    assert any("label_noise.pray" in p.what for p in noisy(tmp_path, {"pray": 0.1}).check())
