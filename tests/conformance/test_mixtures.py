"""What every option of configs/mixture keeps to, on real data where RUNNER_DATA has it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from runner.config.build import build, locate
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.paths import read_header
from runner.config.source import constant
from runner.config.static import signature
from runner.errors import UserError
from runner.mixtures.base import Mixture
from runner.mixtures.collate import collate
from runner.mixtures.stream import eval_batches
from runner.predicting.accepts import accepted, check
from runner.predicting.request import Request
from runner.specs import InputSpec
from tests.mixtures.archives import (
    BUILDINGS,
    rooms,
    write_celeba,
    write_cityscapes,
    write_cityscapes2,
    write_folders,
    write_nyuv2_hub,
    write_pascal_context,
    write_taskonomy,
)
from tests.mixtures.miniature import expand
from tests.mixtures.molecules import write_sdf

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "mixture").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
SPLITS = ("train", "validation", "test")
NO_DATA = ("rooms", "toy_pareto")
BACKBONES = {"image": "resnet", "text": "bert", "table": "mlp", "graph": "mpnn"}
MADE = {"nyud": ("NYUD_MT", "nyud_mt"), "nyuv2": ("nyuv2", "nyuv2")}
"""Options whose archive the data folder's own script writes: the archive's folder, the script's layout."""

MINIATURES = {
    "pascal_context": ("PASCALContext", lambda root: write_pascal_context(root, rooms(4), rooms(2, 4))),
    "celeba": ("celeba", lambda root: write_celeba(root, 24)),
    "cityscapes": ("cityscapes", lambda root: write_cityscapes(root, rooms(4), rooms(2, 4))),
    "cityscapes2": ("cityscapes2", lambda root: write_cityscapes2(root, rooms(4), rooms(2, 4))),
    "folders": ("pictures", lambda root: write_folders(root, rooms(4), rooms(2, 4))),
    "nyuv2_hub": ("nyuv2_hub", lambda root: write_nyuv2_hub(root, rooms(4), rooms(2, 4))),
    "qm9": ("qm9", lambda root: write_sdf(root, 24)),
    "taskonomy": ("taskonomy", lambda root: write_taskonomy(root, rooms(8))),
}
"""Options whose archive is drawn here: its folder, and what writes it."""

OVERRIDES = {
    "folders": ["mixture.tasks.segmentation.num_classes=13"],
    "qm9": ["mixture.validation=5", "mixture.test=5"],
    "taskonomy": [f"mixture.buildings.{s}=[{','.join(names)}]" for s, names in BUILDINGS.items()],
}
"""What a miniature has less of, or other."""


@cache
def target(name: str) -> str:
    return yaml.safe_load(FILES[NAMES.index(name)].read_text())["_target_"]


@cache
def config(name: str) -> dict[str, Any]:
    """The option as a run would freeze it."""
    backbone = BACKBONES[constant(target(name), "input_kind")]
    overrides = [f"mixture={name}", f"backbone={backbone}", *OVERRIDES.get(name, [])]
    return finalize(compose("train", overrides), data=False)["mixture"]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory):
    """Option → where its data is: made where it can be made, else RUNNER_DATA. Skips where there is none."""
    place = tmp_path_factory.mktemp("archives")

    def find(name: str, request: pytest.FixtureRequest) -> str:
        if name in NO_DATA:
            return str(place / "nothing")
        if name in MINIATURES:
            folder, write = MINIATURES[name]
            if not (place / folder).exists():
                write(place / folder)
            return str(place)
        data: Path = request.getfixturevalue("runner_data")
        if name not in MADE:
            return str(data)
        folder, layout = MADE[name]
        if not (place / folder).exists():
            if not (data / "nyud" / "expand.py").is_file():
                pytest.skip(f"mixture={name}: {data} has no nyud/expand.py that writes the archive")
            expand(data, place / folder, layout)
        return str(place)

    return find


@pytest.fixture(scope="session")
def once() -> dict[str, tuple[Mixture, InputSpec]]:
    """What was opened: a text mixture trains its tokenizer then."""
    return {}


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n == "sentences_merge" else n for n in NAMES])
def opened(request: pytest.FixtureRequest, data_root, once) -> tuple[Mixture, InputSpec]:
    name = request.param
    if name not in once:
        mixture = build(config(name), data_root(name, request), where="mixture")
        problems = mixture.check()
        if problems:
            pytest.skip(f"mixture={name}: {problems[0].what}")
        once[name] = mixture, mixture.setup(None)
    return once[name]


def some(dataset, count: int = 3) -> list[int]:
    return sorted({0, len(dataset) // 2, len(dataset) - 1})[:count]


# ---- without data ----------------------------------------------------------------------------------------------------


def test_expected_options() -> None:
    assert set(NAMES) >= {"rooms", "nyud", "nyuv2", "images", "intents", "sentences", "adult"}


@pytest.mark.parametrize("name", NAMES)
def test_the_header(name) -> None:
    summary, facts = read_header(FILES[NAMES.index(name)])
    assert summary.endswith(".")
    assert {"cost", "run"} <= set(facts)
    assert facts["run"].startswith("runner train ")


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_parameters(name) -> None:
    """Every key the component takes is written in the file, so that a person can see it, and no other."""
    written = set(yaml.safe_load(FILES[NAMES.index(name)].read_text())) - {"_target_", "defaults"}
    assert written == set(signature(target(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_input_kind_is_readable_without_importing(name) -> None:
    assert constant(target(name), "input_kind") == locate(target(name)).input_kind
    assert locate(target(name)).input_kind in BACKBONES


@pytest.mark.parametrize("name", NAMES)
def test_it_composes_with_its_tasks(name) -> None:
    tasks = config(name)["tasks"]
    assert tasks
    assert all(constant(task["_target_"], "kind") in ("dense", "pooled", "token") for task in tasks.values())


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_is_one_clear_problem(name, tmp_path) -> None:
    """Making a mixture touches nothing; checking it says what, where, how, and which mixture needs none."""
    made = build(config(name), str(tmp_path / "nowhere"), where="mixture")
    problems = made.check()
    if name in NO_DATA:
        assert problems == []
        return
    assert problems
    text = "\n".join(map(str, problems))
    assert str(tmp_path / "nowhere") in text
    assert "mixture=rooms" in text


@pytest.mark.parametrize("name", NAMES)
def test_checking_imports_no_torch(name, tmp_path) -> None:
    code = (
        "import json, sys; from runner.config.build import build;"
        "made = build(json.loads(sys.argv[1]), sys.argv[2]); made.check();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules or 'datasets' in sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps(config(name)), str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


REFUSED = {"toy_pareto": "functions of the weights alone"}
"""Options whose runs `runner predict` has no answer for, and the reason that it gives."""


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_it_predicts_or_says_why_not(name) -> None:
    frozen = {"mixture": config(name), "data_root": "nowhere"}
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            accepted(frozen, "RUN")
        return
    found = accepted(frozen, "RUN")
    assert [*found.dense, *found.others]
    kind = constant(target(name), "input_kind")
    for given, fits in (({"image": "x.png", "to": "x"}, kind == "image"), ({"texts": ["x"]}, kind == "text")):
        if fits:
            check(found, "RUN", Request(run="RUN", **given))
        else:
            with pytest.raises(UserError, match="'RUN' reads "):
                check(found, "RUN", Request(run="RUN", **given))
    with pytest.raises(UserError, match="there is no input"):
        check(found, "RUN", Request(run="RUN"))


# ---- with data -------------------------------------------------------------------------------------------------------


def test_the_input_spec(opened) -> None:
    mixture, spec = opened
    assert spec.kind == mixture.input_kind
    if spec.kind == "image":
        assert spec.size is not None
        assert min(spec.size) >= 1
    elif spec.kind == "text":
        assert spec.vocab_size
        assert spec.pad_token_id is not None
        assert spec.max_length
    elif spec.kind == "graph":
        assert spec.elements and spec.num_atoms
    else:
        assert spec.num_numeric + len(spec.cardinalities) > 0


def test_what_a_run_keeps_makes_the_same_inputs_without_the_data(opened, request) -> None:
    """A mixture whose data is not there, but which has what another one learned, reads as that one does."""
    mixture, _ = opened
    kept = json.loads(json.dumps(mixture.keep()))
    again = build(config(request.node.callspec.params["opened"]), "/nowhere", where="mixture")
    again.restore(kept, None)
    assert again.keep() == kept
    names = mixture.class_names()
    for task, classes in names.items():
        assert len(classes) == len(set(classes)) == mixture.tasks[task]["num_classes"]


def test_all_splits_have_the_same_data_sets_with_examples(opened) -> None:
    mixture, _ = opened
    splits = {split: mixture.datasets(split) for split in SPLITS}
    for split, datasets in splits.items():
        assert list(datasets) == list(splits["train"]), split
        for name, dataset in datasets.items():
            assert dataset.name == name
            assert len(dataset) > 0
            assert set(dataset.tasks) <= set(mixture.tasks)
    assert {t for d in splits["train"].values() for t in d.tasks} == set(mixture.tasks)


def test_examples_of_different_splits_differ(opened) -> None:
    mixture, _ = opened
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        for name, dataset in mixture.datasets(split).items():
            ids = {dataset.example(i, None).id for i in range(min(len(dataset), 20))}
            assert len(ids) == min(len(dataset), 20)
            assert not ids & seen.setdefault(name, set())
            seen[name] |= ids


def test_targets_keep_the_conventions(opened) -> None:
    mixture, spec = opened
    for split in SPLITS:
        for dataset in mixture.datasets(split).values():
            for index in some(dataset):
                example = dataset.example(index, np.random.default_rng(index) if split == "train" else None)
                assert set(example.targets) <= set(dataset.tasks)
                check_inputs(example.inputs, spec, split)
                for task, target_ in example.targets.items():
                    check_target(target_, mixture.tasks[task], example.inputs)


def check_inputs(inputs: dict[str, np.ndarray], spec: InputSpec, split: str) -> None:
    if spec.kind == "image":
        pixels = inputs["pixels"]
        assert pixels.dtype == np.float32
        assert pixels.shape[0] == 3
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert split != "train" or pixels.shape[1:] == spec.size
    elif spec.kind == "text":
        ids = inputs["input_ids"]
        assert ids.dtype == np.int64
        assert ids.ndim == 1
        assert 0 < len(ids) <= spec.max_length
        assert ids.min() >= 0
        assert ids.max() < spec.vocab_size
        assert inputs["attention_mask"].shape == ids.shape
    elif spec.kind == "graph":
        count = len(inputs["atoms"])
        assert 0 < count <= spec.num_atoms
        assert set(inputs["atoms"]) <= set(spec.elements)
        assert inputs["positions"].shape == (count, 3)
        assert inputs["positions"].dtype == np.float32
        bonds = inputs["bonds"]
        assert bonds.shape == (count, count)
        assert (bonds == bonds.T).all() and set(np.unique(bonds)) <= {0, 1, 2, 3, 4}
    else:
        assert inputs["numeric"].shape == (spec.num_numeric,)
        assert inputs["numeric"].dtype == np.float32
        codes = inputs["categorical"]
        assert codes.dtype == np.int64
        assert ((codes >= 0) & (codes < np.array(spec.cardinalities))).all()


def check_target(target_: np.ndarray, task: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    kind, classes = constant(task["_target_"], "kind"), task.get("num_classes")
    known = target_[target_ != -100] if target_.dtype == np.int64 else target_[~np.isnan(target_)]
    assert target_.dtype in (np.int64, np.float32)
    if kind == "dense":
        assert target_.shape[-2:] == inputs["pixels"].shape[1:]
        assert target_.ndim == (2 if target_.dtype == np.int64 else 3)
    if kind == "pooled" and target_.dtype == np.int64:
        assert target_.shape == ()
    if kind == "token":
        assert target_.shape == inputs["input_ids"].shape
    if target_.dtype == np.int64:
        assert ((known >= 0) & (known < classes)).all()
    if kind == "dense" and target_.dtype == np.float32:
        if target_.shape[0] == 3:
            lengths = np.linalg.norm(target_, axis=0)
            np.testing.assert_allclose(lengths[~np.isnan(lengths)], 1, atol=1e-4)
        elif constant(task["_target_"], "loss_kind") == "classification":
            assert np.isin(known, (0, 1)).all()
        else:
            assert (known > 0).all() or not task["_target_"].endswith(".Depth")


def same(a, b) -> bool:
    keys = a.inputs.keys() == b.inputs.keys() and a.targets.keys() == b.targets.keys() and a.id == b.id
    pairs = [(a.inputs[k], b.inputs[k]) for k in a.inputs] + [(a.targets[k], b.targets[k]) for k in a.targets]
    return keys and all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def test_the_generator_decides(opened) -> None:
    """The same example twice, also from a copy in another process's memory, whatever the global generator does."""
    mixture, _ = opened
    for dataset in mixture.datasets("train").values():
        copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        for index in some(dataset, 2):
            np.random.seed(0)
            first = dataset.example(index, np.random.default_rng([1, index]))
            np.random.seed(1)
            assert same(first, dataset.example(index, np.random.default_rng([1, index])))
            assert same(first, copy.example(index, np.random.default_rng([1, index])))
            assert same(dataset.example(index, None), copy.example(index, None))


def test_splits_are_the_same_when_opened_again(opened, request) -> None:
    mixture, _ = opened
    again = build(config(request.node.callspec.params["opened"]), mixture.data_root, where="mixture")
    again.setup(None)
    for split in SPLITS:
        others = again.datasets(split)
        for name, dataset in mixture.datasets(split).items():
            other = others[name]
            assert len(other) == len(dataset)
            assert all(same(dataset.example(i, None), other.example(i, None)) for i in some(dataset))


def test_evaluation_batches(opened) -> None:
    """Through the collate and the loader that a run uses."""
    mixture, spec = opened
    for dataset in mixture.datasets("validation").values():
        short = Head(dataset, 5)
        groups = list(
            eval_batches(short, batch_size=2, rank=0, world_size=1, num_workers=0, pad_token_id=spec.pad_token_id)
        )
        assert [i for g in groups for i in g.ids] == [dataset.example(i, None).id for i in range(len(short))]
        for group in groups:
            assert all(isinstance(v, torch.Tensor) and len(v) == len(group) for v in group.inputs.values())


class Head:
    """The first examples of a data set."""

    def __init__(self, dataset, count: int) -> None:
        self.dataset, self.count = dataset, min(count, len(dataset))
        self.name, self.tasks = dataset.name, dataset.tasks

    def __len__(self) -> int:
        return self.count

    def example(self, index, rng):
        return self.dataset.example(index, rng)


def test_a_group_of_training_examples(opened) -> None:
    mixture, spec = opened
    for dataset in mixture.datasets("train").values():
        rows = [dataset.example(i % len(dataset), np.random.default_rng(i)) for i in range(4)]
        group = collate(dataset.name, rows, spec.pad_token_id)
        assert len(group) == 4
        assert group.name == dataset.name
