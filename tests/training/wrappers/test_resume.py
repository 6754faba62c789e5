"""Architectures and wrappers that keep a state of their own: stopped and continued, a run ends in the same bits."""

from __future__ import annotations

import pytest
import torch

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import EXIT_STOPPED
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train
from tests.support import TINY, weights

PAIRS = {
    "triplane_3d": ["wrapper=triplane_3d", "wrapper.channels=4", "wrapper.hidden=4", "wrapper.samples=4"],
    "slimmable": ["architecture=slimmable", "architecture.widths=[0.5,1.0]", "wrapper=ci_kd",
                  "architecture.budgets=[]"],
    "vtagml": ["architecture=vtagml", "wrapper=task_affinity", "wrapper.every=2"],
    "base_subtask": ["architecture=base_subtask"],
    "mtsl": ["architecture=mtsl", "wrapper=mtsl", "wrapper.first=2", "wrapper.every=2", "wrapper.threshold=0.0",
             "wrapper.distil_steps=2", "wrapper.examples=8"],
}  # fmt: skip


class After(StopFlag):
    """Asks to stop after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, name):
    options = ["tasks=[segmentation,depth]", "trainer.max_steps=5", "architecture.dense_head.channels=8", *PAIRS[name]]

    def claim(place):
        config = finalize(compose("train", [*TINY, f"output_dir={tmp_path / place}", *options]))
        return RunDirectory.claim(config, "train", [])

    whole, parts = claim("whole"), claim("parts")
    assert train(whole, StopFlag()) == 0
    assert train(parts, After(2)) == EXIT_STOPPED
    assert train(parts, StopFlag()) == 0
    expected, found = weights(whole.path), weights(parts.path)
    assert expected.keys() == found.keys()
    assert [n for n, value in expected.items() if not torch.equal(value, found[n])] == []
