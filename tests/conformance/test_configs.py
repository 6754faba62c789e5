"""Every option of every group: its comments, its keys, its experiments."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from runner.config import paths
from runner.config.compose import composer
from runner.config.conformance import validate_option
from runner.config.freeze import finalize

OPTIONS = [option for group in paths.groups() for option in paths.options(group)]
NAMES = [option.key for option in OPTIONS]


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_it_composes_and_checks(option):
    assert [str(problem) for problem in validate_option(option)] == []


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_its_comments_say_what_it_is(option):
    assert option.summary.endswith((".", "…"))
    assert len(option.summary) <= 130
    assert option.notes.get("cost")
    command = option.notes.get("run", "")
    assert command.startswith("runner ")
    assert option.name in command or option.group in ("task", "head", "launch", "trainer", "tracking", "merging")
    if "paper" in option.notes:
        assert re.search(r"\b(19|20)\d\d\b", option.notes["paper"])


@pytest.fixture(scope="module")
def compose():
    with composer("train") as compose_one:
        yield compose_one


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if o.notes["run"].startswith("runner train")], ids=lambda o: o.key
)
def test_its_command_is_a_valid_one(option, compose):
    """What `runner show` proposes to type."""
    words = shlex.split(option.notes["run"].split(" && ")[0])[2:]
    many = "-m" in words
    finalize(compose([word for word in words if "=" in word], many), data=False)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.group == "experiment"], ids=lambda o: o.key)
def test_an_experiment_is_packaged_globally(option):
    assert option.path.read_text().startswith("# @package _global_\n")
    content = yaml.safe_load(option.path.read_text())
    for entry in content.get("defaults", []):
        key = entry if isinstance(entry, str) else next(iter(entry))
        assert key == "_self_" or key.startswith(("override /", "/")), key


def test_train_overrides_no_group_of_the_app():
    """An experiment's `override /group` would lose to it (Hydra issue 3229)."""
    content = yaml.safe_load((paths.config_root() / "train.yaml").read_text())
    overridden = [key for entry in content["defaults"] if isinstance(entry, dict) for key in entry if "override" in key]
    assert all(key.startswith("override hydra/") for key in overridden)
    assert not any("experiment" in str(entry) for entry in content["defaults"])


def test_every_known_group_has_options():
    assert set(paths.GROUPS) <= set(paths.groups())
    assert all(paths.options(group) for group in paths.groups())
