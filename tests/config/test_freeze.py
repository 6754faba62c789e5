from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.config.compose import compose
from runner.config.freeze import finalize, finalize_eval
from runner.config.signature import signature
from runner.errors import UserError


def freeze(*overrides: str, config_dir: str | None = None) -> dict:
    return finalize(compose("train", list(overrides), config_dir))


def told(*overrides: str, config_dir: str | None = None) -> list[str]:
    with pytest.raises(UserError) as error:
        freeze(*overrides, config_dir=config_dir)
    return list(map(str, error.value.problems))


def own(path: str, text: str) -> None:
    file = Path("own") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_frozen_configuration_is_plain_and_whole():
    config = freeze("+experiment=demo")
    assert json.loads(json.dumps(config)) == config
    assert "???" not in json.dumps(config)
    assert "${" not in json.dumps(config)
    assert list(config["mixture"]["tasks"]) == ["segmentation", "depth", "normals", "edge"]
    assert not any(OmegaConf.is_config(value) for value in config.values())


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["+experiment=demo"], "demo"),
        ([], "rooms"),
        (["+experiment=demo", "name=mine"], "mine"),
        (["name=a/b"], "a/b"),
    ],
)
def test_name(overrides, name):
    assert freeze(*overrides)["name"] == name


def test_tasks_are_filtered_in_the_mixtures_order():
    config = freeze("tasks=[depth,segmentation]")
    assert list(config["mixture"]["tasks"]) == ["segmentation", "depth"]


def test_places_are_absolute_and_do_not_count(monkeypatch):
    monkeypatch.setenv("RUNNER_DATA", "some/data")
    here = freeze("output_dir=~/runs", "run_dir=pinned")
    assert here["data_root"] == str(Path.cwd() / "some/data")
    assert here["output_dir"] == str(Path("~/runs").expanduser())
    assert here["run_dir"] == str(Path.cwd() / "pinned")
    monkeypatch.setenv("RUNNER_DATA", "/other")
    assert signature(freeze()) == signature(here)


def test_a_selection_of_tasks_counts():
    assert signature(freeze("tasks=[depth]")) != signature(freeze())


def test_defaults_fill_a_section_of_the_users_own():
    own("trainer/short.yaml", "# Short.\nmax_steps: 3\n")
    own("tracking/quiet.yaml", "# Quiet.\nwandb: {mode: disabled}\nconsole: quiet\n")
    config = freeze("trainer=short", "tracking=quiet", config_dir="own")
    assert (config["trainer"]["max_steps"], config["trainer"]["batch_size"]) == (3, 16)
    assert config["tracking"]["wandb"] == {
        "mode": "disabled", "project": "runner", "entity": None, "tags": [], "notes": None
    }  # fmt: skip


def test_interpolations_are_resolved_also_hydras():
    config = freeze("+experiment=demo", "name=${hydra:runtime.choices.weighting}-${seed}", "seed=4")
    assert config["name"] == "equal-4"


def test_the_environment_may_name_places_but_not_decide_weights(monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    assert freeze("output_dir=${oc.env:PLACE}")["output_dir"].endswith("/here")
    monkeypatch.setenv("SEED", "3")
    (problem,) = told("seed='${oc.decode:${oc.env:SEED}}'")
    assert "'seed' reads the environment" in problem
    (problem,) = told("trainer.max_steps=${oc.env:NOT_SET}")
    assert "'trainer.max_steps' reads the environment" in problem


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["name=${see}"], ["'name' is ${see}, which cannot be resolved", "did you mean 'seed'?"]),
        (["seed=${trainer.kep}"], ["'seed' is ${trainer.kep}", "did you mean 'keep'?"]),
        (["name=${no_resolver:1}"], ["cannot be resolved"]),
        (["trainer.max_steps=${trainer.max_steps}"], ["cannot be resolved"]),
        (["name=${"], ["cannot"]),
    ],
)
def test_broken_interpolations(overrides, messages):
    problems = told(*overrides)
    assert len(problems) == 1
    assert all(message in problems[0] for message in messages)


def test_a_mistake_is_traced_to_the_file_that_made_it():
    own("experiment/bad.yaml", "# @package _global_\n# Bad.\ntrainer: {batch_sise: 3, max_steps: -1}\n")
    own("weighting/worse.yaml", "# Worse.\n_target_: runner.weighting.equal.Equal\nscael: sum\n")
    problems = told("+experiment=bad", "weighting=worse", "optimizer.lrr=1", config_dir="own")
    assert [p.splitlines()[0] for p in problems] == [
        "error: unknown key 'weighting.scael' (in weighting=worse)",
        "error: unknown key 'optimizer.lrr'",
        "error: 'trainer.max_steps' must be an integer of 1 or more or null, not -1 (in +experiment=bad)",
        "error: unknown key 'trainer.batch_sise' (in +experiment=bad)",
    ]
    assert "  see: runner show optimizer/adamw" in problems[1]
    assert "  did you mean 'trainer.batch_size'?" in problems[3]


def test_keys_on_the_wrong_level_are_found():
    problems = told("max_steps=3", "lr=1", "trainer.seed=1")
    assert "did you mean 'trainer.max_steps'?" in problems[0]
    assert "did you mean 'optimizer.lr'?" in problems[1]
    assert "did you mean 'seed'?" in problems[2]


def test_what_was_not_chosen_is_not_complained_about():
    """The keys were meant for the experiment or option that does not exist."""
    assert len(told("+experiment=dmo", "mixture.foo=1")) == 1
    assert len(told("weighting=pcgrd", "weighting.foo=1")) == 1
    assert len(told("weighting=pcgrd", "optimizer.foo=1")) == 2


def test_plugins_are_checked_without_importing(tmp_path, monkeypatch):
    from runner.config import build

    monkeypatch.setattr(build, "_allowed", ["runner"])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_weightings.py").write_text(
        "import torch_is_not_needed\nfrom runner.weighting.base import LossWeighting\n"
        "class Mine(LossWeighting):\n    def __init__(self, tasks, *, power: float = 1.0): ...\n"
        "class Plain:\n    def __init__(self, tasks, *, power: float = 1.0): ...\n"
    )
    own("weighting/mine.yaml", "# Mine.\n_target_: my_weightings.Mine\npower: 2\n")
    (problem,) = told("weighting=mine", config_dir="own")
    assert "'weighting._target_' 'my_weightings.Mine' is outside the allowed packages" in problem
    assert freeze("weighting=mine", "plugins=[my_weightings]", config_dir="own")["weighting"]["power"] == 2
    (problem,) = told("weighting=mine", "plugins=[my_weightings]", "weighting.powr=2", config_dir="own")
    assert "did you mean 'weighting.power'?" in problem
    (problem,) = told(
        "weighting=mine", "plugins=[my_weightings]", "weighting._target_=my_weightings.Plain", config_dir="own"
    )
    assert "'weighting._target_' is 'my_weightings.Plain', which is no Weighting" in problem
    assert "derive the class from runner.weighting.base.Weighting" in problem


def test_eval_is_frozen():
    config = finalize_eval(compose("eval", ["run=some/run", "checkpoint=200"]))
    assert config["run"] == str(Path.cwd() / "some/run")
    assert config["checkpoint"] == 200
    assert config["launch"]["num_processes"] == 1
    with pytest.raises(UserError, match="missing value for 'run'"):
        finalize_eval(compose("eval", []))
    with pytest.raises(UserError, match="unknown key 'trainer'"):
        finalize_eval(compose("eval", ["run=x", "+trainer.keep=1"]))
