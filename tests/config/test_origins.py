"""What an experiment wrote for an option that the command line replaced."""

from __future__ import annotations

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.grid import check, expand
from runner.errors import UserError


def frozen(*overrides: str) -> tuple[dict, list[str]]:
    composed = compose("train", list(overrides))
    return finalize(composed, data=False), composed.notes


def test_keys_of_the_experiments_own_option_are_left_out_and_told():
    config, notes = frozen("+experiment=demo", "backbone=vit")
    assert "stem_pool" not in config["backbone"]
    assert config["backbone"]["size"] == "tiny"  # which ViT knows as well
    assert notes == ["'backbone.stem_pool' of +experiment=demo left out: no key of backbone=vit"]


def test_nothing_is_said_where_the_option_is_the_experiments():
    config, notes = frozen("+experiment=demo", "backbone=resnet")
    assert config["backbone"]["stem_pool"] is False and notes == []


def test_of_an_experiment_that_this_one_builds_on():
    """papers/atrc_cpu builds on mtl_nyud_quick, which writes the ResNet's keys."""
    config, notes = frozen("+experiment=papers/atrc_cpu", "backbone=segformer", "backbone.size=b0")
    assert "stem_pool" not in config["backbone"]
    assert len(notes) == 1 and "of +experiment=mtl_nyud" in notes[0]


def test_where_the_command_line_takes_the_option_away():
    config, notes = frozen("+experiment=papers/lw_ptv", "merge=none")
    assert set(config["merge"]) == {"_target_"}
    assert "'merge.weights'" in notes[0]


def test_what_was_typed_is_an_error():
    with pytest.raises(UserError, match=r"unknown key 'backbone\.stem_pool'"):
        frozen("+experiment=demo", "backbone=vit", "backbone.stem_pool=true")


def test_a_mistake_of_the_experiment_for_its_own_option_is_an_error(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/own.yaml").write_text(
        "# @package _global_\n# Own.\n# cost: none\n# run: runner train +experiment=own\n"
        "defaults:\n  - /experiment/demo\nbackbone:\n  stem_pol: true\n"
    )
    with pytest.raises(UserError, match=r"unknown key 'backbone.stem_pol' \(in \+experiment=own\)"):
        finalize(compose("train", ["+experiment=own"], str(tmp_path)), data=False)


def test_a_sweep_says_it_once():
    grid = expand(compose("train", ["+experiment=demo", "backbone=vit,swin", "seed=0,1"], multirun=True))
    check(grid, None)
    assert [note.rpartition("=")[2] for note in grid.notes] == ["vit", "swin"]
