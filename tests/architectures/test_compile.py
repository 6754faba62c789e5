"""Architectures compile to one graph: what torch.compile makes of them has no breaks."""

from __future__ import annotations

import pytest
import torch

from tests.architectures.worlds import TASKS, images, make

CONTEXTS = {"depth": {"segmentation": "global", "normals": "local"}}
DECODERS = {
    "pad_net": {"channels": 8},
    "mti_net": {"channels": 8},
    "invpt": {"channels": 32},
    "atrc": {"channels": 8, "contexts": CONTEXTS, "kernel": 3},
    "task_prompter": {"channels": 8, "out_channels": 8, "grid": [4, 4], "reweight": True},
    "task_expert": {"channels": 8, "experts": 2},
    "mtmamba": {},
    "mtmamba_pp": {},
    "medusa": {"channels": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone"),
    [*((n, "resnet") for n in ("hard_sharing", "cross_stitch", "mtan", "mmoe", *DECODERS)), ("cross_stitch", "hrnet")],
)
def test_no_graph_breaks(name, backbone):
    model, group = make(name, backbone=backbone, **DECODERS.get(name, {})).eval(), images(size=(32, 32))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(group, list(TASKS))
        for task, prediction in compiled(group, list(TASKS)).items():
            torch.testing.assert_close(prediction, expected[task])
