"""Names of options in reports."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from runner.config.compose import compose
from runner.config.signature import flatten
from runner.reporting.options import option_name


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("runner.weighting.pcgrad.PCGrad", "pcgrad"),
        ("runner.training.optimizers.adamw", "adamw"),
        ("runner.architectures.heads.pooled.Linear", "linear"),
        ("runner.backbones.swin.Swin", "swin"),
        ("mine.weightings.Own", "Own"),
        (None, "none"),
    ],
)
def test_by_the_class_alone(target, name):
    assert option_name("part._target_", {"part._target_": target}) == name


@pytest.mark.parametrize("name", ["sentences", "sentences_merge", "glue8", "images", "images_merge", "images_base"])
def test_of_options_with_one_class_the_nearest_is_named(name):
    """Also where a key was changed."""
    config = OmegaConf.to_container(compose("train", [f"mixture={name}", "mixture.validation=0.37"]).config)
    assert option_name("mixture._target_", dict(flatten(config))) == name
