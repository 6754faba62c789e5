"""Wrappers in real runs: cut and continued ends in the same bits, two processes end where one does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.launching.test_run_life import same_bits
from tests.support import TINY, rows, runner, train, weights

STEPS = ["mixture.train=16", "trainer.max_steps=8", "trainer.checkpoint_every=2", "trainer.keep=9"]
RUNS = {
    "task_sam": ["weighting=moco", "wrapper.rho=0.5"],  # keeps K×P state, in both of its aggregators
    "rep_mtl": ["weighting=uncertainty", "trainer.accumulation=2"],
    "svd_reweight": ["weighting=cagrad"],
}
EXACT = [
    *TINY, "backbone=vit", "backbone.size=tiny", "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=0.01",
    "trainer.max_steps=8", "trainer.eval_every=8",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_a_cut_run_ends_in_the_same_bits(name, tmp_path):
    run = train(tmp_path, *TINY, *STEPS, f"wrapper={name}", *RUNS[name])
    cut = tmp_path / "cut"
    shutil.copytree(run, cut, symlinks=True)
    for path in (cut / "checkpoints").iterdir():
        if path.is_symlink() or int(path.name.rpartition("-")[2]) > 4:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    (cut / "result.json").unlink()
    info = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(info | {"status": "FAILED"}))
    done = runner("resume", str(cut))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing at step 4" in done.stdout
    same_bits(run, cut)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["wrapper=task_sam", "weighting=cagrad"],
        # Rounding grows a hundredfold in every four steps: the penalty's softmax is steep.
        ["wrapper=rep_mtl", "weighting=equal", "trainer.max_steps=4", "trainer.eval_every=4"],
        ["wrapper=svd_reweight", "trainer.eval_batch_size=4"],
    ],
    ids=lambda o: o[0],
)
def test_two_processes_equal_one(overrides, tmp_path):
    one = train(tmp_path / "one", *EXACT, *overrides)
    two = train(tmp_path / "two", *EXACT, *overrides, "launch.num_processes=2")
    first, second = weights(one), weights(two)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_run_says_what_its_gradients_do(tmp_path):
    """Rows for tasks, pairs and the solver from a gradient method, and the pictures of them."""
    quoted = "reference={depth: {rmse: 0.5}}"
    run = train(tmp_path, *TINY, *STEPS, "weighting=cagrad", "wrapper=task_sam", "tracking.plots=true", quoted)
    found = {(r["task"], r["metric"]) for r in rows(run) if r["split"] == "train"}
    assert {("depth", "weight"), ("depth", "grad_norm"), ("", "solver_share")} <= found
    assert {("segmentation~depth", "cosine"), ("normals~edge", "conflict")} <= found
    for row in rows(run):
        if row["metric"] in ("conflict", "solver_share") and row["split"] == "train":
            assert 0 <= row["value"] <= 1
    assert {p.name for p in (run / "plots").iterdir()} == {"losses.png", "weights.png", "conflicts.png"}
    assert json.loads((run / "result.json").read_text())["reference"] == {"depth": {"rmse": 0.5}}
