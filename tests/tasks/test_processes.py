"""Metrics over several processes equal those of one process that sees everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from tests.tasks.cases import NAMES, batch, join, make, measured
from tests.tasks.worker import run, seeds


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    """Uneven batches, of which one process has none at all."""
    world = 3
    mp.spawn(run, (world, str(tmp_path)), nprocs=world)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for name in NAMES:
        task = make(name)
        whole = join([batch(task, n, seed) for rank in range(world) for n, seed in seeds(rank)])
        expected = measured(task, [whole])
        for result in results:
            assert result[name] == pytest.approx(expected, rel=1e-12, nan_ok=True), name
