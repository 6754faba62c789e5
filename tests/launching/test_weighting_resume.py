"""Weightings with a state of their own: a run that was cut and continued ends in the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.paths import config_root
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training import loop
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


def cut_at(run: Path, step: int, place: Path) -> Path:
    """A copy of a run as a kill would have left it."""
    shutil.copytree(run, place, symlinks=True)
    for path in (place / "checkpoints").iterdir():
        if path.is_symlink() or int(path.name.rpartition("-")[2]) > step:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    (place / "result.json").unlink()
    info = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps(info | {"status": "FAILED"}))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OVERRIDES))
def test_a_cut_run_ends_in_the_same_bits(name, tmp_path):
    run = train(tmp_path, *TINY, *STEPS, f"weighting={name}", *OVERRIDES[name])
    weights = [r["value"] for r in rows(run) if r["metric"] == "weight" and r["task"] == "depth"]
    assert len(set(weights)) > 2, "the weights should move, or the test shows nothing"
    cut = cut_at(run, 6, tmp_path / "cut")
    done = runner("resume", str(cut))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing at step 6" in done.stdout
    same_bits(run, cut)


SMALL = ["mixture.size=[16,16]", "mixture.train=8", "tasks=[depth,edge]", "mixture.validation=4", "mixture.test=4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(p.stem for p in config_root().glob("weighting/*.yaml") if p.stem not in OVERRIDES)
)
def test_every_other_weighting_too(name, tmp_path, capsys):
    """In this process: four steps, cut after two."""
    steps = ["trainer.max_steps=4", "trainer.checkpoint_every=2", "trainer.keep=9", "trainer.batch_size=4"]
    config = finalize(compose("train", [*TINY, *SMALL, *steps, f"weighting={name}", f"output_dir={tmp_path}"]))
    directory = RunDirectory.claim(config, "train", [])
    assert loop.train(directory, StopFlag()) == 0
    cut = cut_at(directory.path, 2, tmp_path / "cut")
    assert loop.train(RunDirectory(cut), StopFlag()) == 0
    assert "continuing at step 2" in capsys.readouterr().out
    same_bits(directory.path, cut)
