"""The main architectures compile to one graph: what torch.compile makes of them has no breaks."""

from __future__ import annotations

import pytest
import torch

from tests.architectures.worlds import TASKS, images, make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hard_sharing", "cross_stitch", "mtan", "mmoe"])
def test_no_graph_breaks(name):
    model, group = make(name).eval(), images(size=(32, 32))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = model(group, list(TASKS))
        for task, prediction in compiled(group, list(TASKS)).items():
            torch.testing.assert_close(prediction, expected[task])
