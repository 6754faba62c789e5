"""Weightings with a state of their own: a run that was cut and continued ends in the same bits."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.launching.test_run_life import same_bits
from tests.support import TINY, rows, runner, train

# Two steps an epoch. The cut is at step 6: dwa has left its first two epochs and stch its warm-up, and both have
# half of their history still to come.
OVERRIDES = {
    "dwa": [],
    "rlw": ["weighting.distribution=dirichlet"],
    "famo": ["trainer.accumulation=2"],
    "stch": ["weighting.warmup_epoch=1"],
    "coba": ["weighting.warmup_steps=3", "weighting.window=5", "weighting.losses=validation"],
    "auto_lambda": ["weighting.lr=0.01"],
    "moml": ["weighting.held_out=train"],
    "forum": ["weighting.inner_step=2", "weighting.eta=0.01"],
    "modo": [],
    "sdmgrad": ["weighting.lr=0.05"],  # with 10 the weights stand in a corner of the simplex
    "mgda_ub": [],
    "nash_mtl": ["weighting.mode=gram"],
}
STEPS = ["mixture.train=16", "trainer.max_steps=12", "trainer.checkpoint_every=3", "trainer.keep=9"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OVERRIDES))
def test_a_cut_run_ends_in_the_same_bits(name, tmp_path):
    run = train(tmp_path, *TINY, *STEPS, f"weighting={name}", *OVERRIDES[name])
    weights = [r["value"] for r in rows(run) if r["metric"] == "weight" and r["task"] == "depth"]
    assert len(set(weights)) > 2, "the weights should move, or the test shows nothing"
    cut = tmp_path / "cut"
    shutil.copytree(run, cut, symlinks=True)
    for path in (cut / "checkpoints").iterdir():
        if path.is_symlink() or int(path.name.rpartition("-")[2]) > 6:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    (cut / "result.json").unlink()
    info = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(info | {"status": "FAILED"}))
    done = runner("resume", str(cut))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing at step 6" in done.stdout
    same_bits(run, cut)
