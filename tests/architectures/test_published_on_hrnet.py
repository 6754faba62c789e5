"""Decoders on the backbones they were published with: parameters counted from the modules of the released code."""

from __future__ import annotations

import pytest
import torch

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.training.assemble import assemble
from tests.architectures.worlds import count

TRUNKS = {"w18_small_v2": 3_860_720, "w48": 65_325_120}


@pytest.mark.parametrize(
    ("experiment", "size", "decoder"),
    [
        ("pad_net", "w18_small_v2", 15_587_418),
        # The released heads have biases of 720 channels before their BatchNorm, which takes them away again.
        ("mti_net", "w48", 100_077_033 - 4 * 720),
        ("atrc", "w48", 7_153_827),
    ],
)
def test_four_tasks_of_nyud(experiment, size, decoder):
    config = finalize(compose("train", [f"+experiment=papers/{experiment}", "backbone.pretrained=null"]), data=False)
    with torch.device("meta"):
        model = assemble(config, must_have_data=False).model
    assert count(model.backbone) == TRUNKS[size]
    assert count(model) == TRUNKS[size] + decoder
