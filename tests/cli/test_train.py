"""`train` and `validate`: from the command line to the front end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from runner.launching import front


def test_one_run_is_handed_over_frozen(runner, started):
    answer = runner("train", "experiment=demo", "seed=3", "tasks=[depth]", "output_dir=here")
    assert answer.code == 0
    ((verb, (config, argv)),) = started
    assert (verb, argv) == ("train", ["train", "experiment=demo", "seed=3", "tasks=[depth]", "output_dir=here"])
    assert (config["name"], config["seed"], list(config["mixture"]["tasks"])) == ("demo", 3, ["depth"])
    assert config["output_dir"] == str(Path("here").absolute())
    assert list(Path().iterdir()) == []  # Hydra left nothing behind


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_exit_code_is_the_runs(runner, monkeypatch, code):
    monkeypatch.setattr(front, "train", lambda *_: code)
    assert runner("train", "+experiment=demo").code == code


def test_dry_run_prints_the_configuration_first(runner, started):
    answer = runner("train", "+experiment=demo", "--dry-run", "seed=7")
    printed = yaml.safe_load(answer.out)
    assert printed["seed"] == 7
    assert started == [("dry_run", (printed,))]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job", "+experiment=demo", "seed=9"],
        ["+experiment=demo", "--cfg", "job", "seed=9"],
        ["experiment=demo", "seed=9", "-c", "job"],
        ["experiment=demo", "seed=9", "--cfg=job", "--resolve"],
    ],
)
def test_hydras_cfg_flag_in_any_position(runner, started, arguments):
    argv = sys.argv
    answer = runner("train", *arguments)
    assert answer.code == 0
    assert yaml.safe_load(answer.out)["seed"] == 9
    assert started == []
    assert sys.argv is argv


def test_hydras_other_flags(runner, started):
    assert runner("train", "--cfg", "job", "-p", "optimizer").out.startswith("# @package optimizer\n")
    assert "hydra" in yaml.safe_load(runner("train", "seed=1", "--cfg", "hydra").out)
    assert "Defaults Tree" in runner("train", "--info", "defaults-tree", "seed=1").out
    assert "Config search path" in runner("train", "-i", "searchpath").out
    assert "Hydra" in runner("train", "--hydra-help").out
    assert started == []


def test_hydras_flags_see_the_rewritten_overrides(runner):
    """A key that the YAML does not list, and an experiment without +, also work where Hydra itself composes."""
    out = runner("train", "experiment=demo", "mixture.tasks.depth.headline=rmse", "--cfg", "job").out
    assert yaml.safe_load(out)["mixture"]["tasks"]["depth"]["headline"] == "rmse"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dryrun"], "did you mean '--dry-run'?"),
        (["--seed", "3"], "overrides are written without dashes: seed=3"),
        (["--trainer.max-steps=3"], "overrides are written without dashes: trainer.max_steps=3"),
        (["-x"], "unknown flag '-x'"),
        (["--cfg"], "--cfg needs a value"),
        (["--cfg", "jb"], "did you mean 'job'?"),
        (["--info=al"], "did you mean 'all'?"),
        (["--config-dir", "nowhere"], "there is no folder 'nowhere'"),
        (["--config-name", "trian"], "did you mean 'train'?"),
        (["--config-path", "x"], "--config-path is not supported"),
        (["--experimental-rerun", "x.pickle"], "it reads a pickle"),
        (["--shell-completion"], "runner completion bash"),
        (["--resolve"], "--resolve goes with --cfg"),
        (["--package", "x"], "--package goes with --cfg"),
        (["--cfg", "job", "-p", "optimzer"], "did you mean 'optimizer'?"),
        (["-m", "--cfg", "job"], "-m and --cfg exclude one another"),
        (["--cfg", "job", "optimizer.lrr=1", "weighting=pcgrd"], "did you mean 'pcgrad'?"),
    ],
)
def test_wrong_flags(runner, started, arguments, message):
    answer = runner("train", *arguments)
    assert (answer.code, started) == (2, [])
    assert message in answer.err


def test_several_wrong_flags_at_once(runner):
    assert runner("train", "--dryrun", "--seed", "3", "--cfg", "jb").err.count("error: ") == 3


def test_validate_says_what_it_is(runner, started):
    answer = runner("validate", "+experiment=demo", "tasks=[depth]")
    assert answer.code == 0
    assert answer.out.startswith("valid: demo, signature ")
    assert answer.out.endswith(", tasks depth\n")
    assert started == []


def test_validate_of_a_sweep_checks_every_job(runner):
    answer = runner("validate", "-m", "seed=1,2", "trainer.max_steps=5,-5")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("error: ") == 1


@pytest.mark.parametrize(("extra", "message"), [(["--cfg", "job"], "does not take --cfg"), (["--al"], "'--all'?")])
def test_validate_refuses_other_flags(runner, extra, message):
    answer = runner("validate", *extra)
    assert answer.code == 2
    assert message in answer.err


def test_validate_all_with_a_folder_of_ones_own(runner, monkeypatch):
    from runner.config import conformance, paths

    real = paths.options
    mine = ("trainer", "weighting", "experiment")  # all groups are checked by tests/conformance
    monkeypatch.setattr(conformance.paths, "groups", lambda folders=None: list(mine))
    monkeypatch.setattr(
        conformance.paths, "options", lambda group, folders=None: [o for o in real(group, folders) if o.name[0] in "dm"]
    )
    Path("own/weighting").mkdir(parents=True)
    Path("own/weighting/mine.yaml").write_text("# Mine.\n_target_: runner.weighting.equal.Equal\nscael: 1\n")
    answer = runner("validate", "--all", "--config-dir", "own")
    assert answer.code == 2
    assert "weighting/mine:\n  error: unknown key 'weighting.scael'" in answer.out
    assert "1 of " in answer.out
