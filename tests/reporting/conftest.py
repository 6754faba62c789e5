"""One sweep that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.synthetic import write_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three weightings, three seeds: job 4 failed, 7 is running, 8 has not begun; baselines lie in `train/`."""
    return write_sweep(
        tmp_path_factory.mktemp("outputs"),
        {"weighting": ["equal", "cagrad", "nash_mtl"], "seed": ["0", "1", "2"]},
        fail={4: "OutOfMemoryError: CUDA out of memory"},
        running=[7],
        absent=[8],
        top={"reference": {"segmentation": {"miou": 0.4081}}},
    )
