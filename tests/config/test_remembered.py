"""Configurations made of remembered files are those of files that were read anew."""

from __future__ import annotations

import os
import time

from omegaconf import OmegaConf

from runner.config import remembered
from runner.config.compose import compose, composer


def plain(composed):
    return OmegaConf.to_container(composed.config, resolve=False), composed.choices


def test_the_second_time_is_the_first():
    remembered._READ.clear()
    lines = ["+experiment=demo", "weighting=pcgrad", "mixture.size=[16,16]"]
    first = plain(compose("train", lines))
    read = dict(remembered._READ)
    assert len(read) > 20
    other = plain(compose("train", ["+experiment=adult", "backbone=mlp"]))
    assert plain(compose("train", lines)) == first != other
    assert all(remembered._READ[key] is found for key, found in read.items())
    with composer("train") as compose_one:
        assert plain(compose_one(list(lines), False)) == first


def test_a_changed_file_is_read_again(tmp_path):
    option = tmp_path / "weighting" / "mine.yaml"
    option.parent.mkdir()
    for scale in ("sum", "mean"):
        option.write_text(f"_target_: runner.weighting.equal.Equal\nscale: {scale}\n")
        os.utime(option, ns=(time.time_ns(), time.time_ns()))
        composed = compose("train", ["+experiment=demo", "weighting=mine"], str(tmp_path))
        assert composed.config.weighting.scale == scale
