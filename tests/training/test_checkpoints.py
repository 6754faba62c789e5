"""Checkpoints: whole or not at all, and everything comes back."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from runner.errors import RunFailed, UserError
from runner.randomness import rng_state, set_rng_state
from runner.specs import InputSpec
from runner.training.checkpoints import (
    Checkpoints,
    check_inputs,
    is_whole,
    load_weights,
    save_weights,
)


def save(checkpoints: Checkpoints, step: int, best: int | None = None, model: nn.Module | None = None):
    return checkpoints.save(
        step, model=model or nn.Linear(3, 2), ema=None, training={"n": step}, state={"step": step}, best_step=best
    )


def test_round_trip(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(5, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(
        7, model=model, ema=model, training={"optimizer": optimizer.state_dict()}, state={"step": 7}, best_step=7
    )
    assert sorted(p.name for p in path.iterdir()) == [
        "DONE", "ema.safetensors", "model.safetensors", "rng-0.pt", "state.json", "training.pt",
    ]  # fmt: skip
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    load_weights(other, path / "model.safetensors")
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    loaded = checkpoints.load(checkpoints.newest())
    fresh = torch.optim.AdamW(other.parameters())
    fresh.load_state_dict(loaded.training["optimizer"])
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_random_generators_come_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), random.gauss(0, 1)

    expected = draw()
    set_rng_state(checkpoints.load(checkpoints.newest()).rng)
    assert draw() == expected
    assert rng_state()["numpy"][0] == "MT19937"


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        save(checkpoints, step, best=2 if step > 1 else 1)
    assert [p.name for p in checkpoints.folders()] == ["step-00000002", "step-00000005", "step-00000006"]
    assert (tmp_path / "latest").resolve().name == "step-00000006"
    assert checkpoints.find("best").name == "step-00000002"
    assert checkpoints.find("latest").name == checkpoints.find("6").name == "step-00000006"


@pytest.mark.parametrize("damage", ["truncate", "flip", "no DONE", "missing file", "empty DONE"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    weights = newest / "model.safetensors"
    data = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(data[:-1])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing file":
        weights.unlink()
    elif damage == "empty DONE":
        (newest / "DONE").write_text("")
    else:
        (newest / "DONE").unlink()
    assert not is_whole(newest)
    if damage == "no DONE":  # was never finished: nothing to warn about
        assert checkpoints.newest().name == "step-00000001"
    else:
        with pytest.warns(UserWarning, match="damaged"):
            assert checkpoints.newest().name == "step-00000001"
    save(checkpoints, 2)  # the run comes by again and writes it anew
    assert checkpoints.newest().name == "step-00000002" and is_whole(newest)


def test_leftovers_of_a_kill_do_not_count_and_do_not_disturb(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    leftover = tmp_path / ".writing-step-00000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest().name == "step-00000001"
    save(checkpoints, 2)
    assert not leftover.exists() and checkpoints.newest().name == "step-00000002"


def test_weights_of_another_shape_are_one_clear_error(tmp_path):
    save_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="do not fit the model"):
        load_weights(nn.Linear(4, 2), tmp_path / "w.safetensors")


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other.b.weight, model.a.weight) and other.b.weight is other.a.weight


def test_missing_checkpoint_lists_those_there_are(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3)
    with pytest.raises(UserError, match="step-00000003"):
        checkpoints.find("5")


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from torch import nn
from runner.errors import RunFailed
from runner.training.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
kwargs = dict(ema=None, training={}, state={}, best_step=None)
checkpoints.save(1, model=nn.Linear(3, 2), **kwargs)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # writes beyond fail like those to a full disk
try:
    checkpoints.save(2, model=nn.Linear(300, 200), **kwargs)
except RunFailed as error:
    print(error)
    print("whole:", checkpoints.newest().name, [p.name for p in Path(sys.argv[1]).iterdir() if "writing" in p.name])
"""


def test_a_write_that_fails_keeps_the_checkpoint_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")], capture_output=True, text=True, check=True
    )
    assert "the checkpoint could not be written" in done.stdout and "runner resume" in done.stdout
    assert "whole: step-00000001 []" in done.stdout


def test_an_unwritable_place_is_a_failed_run(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    with pytest.raises((RunFailed, FileExistsError)):
        save(Checkpoints(tmp_path / "checkpoints"), 1)


def test_weights_of_another_vocabulary_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(
        1, model=nn.Linear(3, 2), ema=None, training={}, state={"step": 1, "inputs": "aaaa"}, best_step=None
    )
    check_inputs(path, InputSpec("text", learned="aaaa"))
    check_inputs(path, InputSpec("image"))  # learns nothing
    check_inputs(tmp_path, InputSpec("text", learned="bbbb"))  # weights from elsewhere say nothing
    with pytest.raises(UserError, match="another vocabulary"):
        check_inputs(path, InputSpec("text", learned="bbbb"))
    with pytest.raises(UserError, match="other statistics of the columns"):
        check_inputs(path, InputSpec("table", learned="bbbb"))
