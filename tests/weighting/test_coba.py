from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from runner.weighting.coba import CoBa, fit_slopes
from tests.weighting.cases import reloaded, run, tasks


def coba(*args, losses="train", **keys):
    return CoBa(*args, losses=losses, **keys)


def reference(losses, window, warmup, tau):
    """Weights after the last row, from the definitions, with numpy's polynomial fit."""
    losses = np.asarray(losses)
    ratios = losses / losses[0]
    slopes = []
    for t in range(warmup, len(losses) + 1):
        rows = ratios[max(0, t - window) : t]
        slopes.append(np.polyfit(np.arange(len(rows)), rows, 1)[0])
    if not slopes:
        return np.full(losses.shape[1], 1 / losses.shape[1])
    slopes = np.array(slopes)
    now, recent = slopes[-1], slopes[-window:]
    rcs = softmax(len(now) * now / np.abs(now).sum())
    acs = softmax(-len(recent) * now / np.abs(recent).sum(0))
    steepest = slopes.max(1)
    t = len(slopes)
    df = min(1.0, t * softmax(-tau * t * steepest / np.abs(steepest).sum())[-1])
    return df * rcs + (1 - df) * acs


def curves(n, seed=0):
    """Two tasks that converge and one that turns round half way."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (n, 3))
    t = np.arange(n)
    turning = 0.5 + np.abs(t - n / 2) / n
    return np.stack([3 * np.exp(-t / 10), 10 * np.exp(-t / 40), turning], 1) + np.abs(noise)


@pytest.mark.parametrize(("window", "warmup", "tau"), [(5, 3, 5.0), (12, 6, 2.0), (100, 2, 5.0)])
def test_every_step_equals_the_definitions(window, warmup, tau):
    losses = curves(40)
    weights = run(coba(tasks(3), window=window, warmup_steps=warmup, tau=tau), losses.tolist())
    for step, got in enumerate(weights):
        expected = reference(losses[:step], window, warmup, tau) if step else np.full(3, 1 / 3)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_equal_weights_while_it_warms_up():
    for weights in run(coba(tasks(3), window=10, warmup_steps=8), curves(8).tolist()):
        torch.testing.assert_close(weights, torch.full((3,), 1 / 3))


def test_slow_tasks_gain_while_all_converge_and_a_diverging_task_loses():
    weighting = coba(tasks(3), window=8, warmup_steps=4)
    t = np.arange(60)
    losses = np.stack([np.exp(-t / 20), np.exp(-t / 60), np.where(t < 30, 1 - t / 100, 0.7 + (t - 30) / 20)], 1)
    weights = torch.stack(run(weighting, losses.tolist()))
    assert weights[12].argmin() == 0, "the fastest task should have least while all converge"
    assert weights[-1].argmin() == 2, "the diverging task should have least"


def test_the_unit_of_a_loss_does_not_matter():
    losses = curves(20)
    plain = run(coba(tasks(3), window=6, warmup_steps=3), losses.tolist())
    scaled = run(coba(tasks(3), window=6, warmup_steps=3), (losses * [1, 1e5, 1e-5]).tolist())
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_constant_losses_keep_equal_weights():
    for weights in run(coba(tasks(2), window=4, warmup_steps=2), [[1.0, 2.0]] * 10):
        torch.testing.assert_close(weights, torch.full((2,), 0.5))


def test_slopes_ignore_missing_rows():
    values = torch.tensor([[1.0, float("nan"), float("nan")], [3.0, 5.0, float("nan")], [2.0, float("nan"), 1.0],
                           [7.0, 1.0, float("nan")]], dtype=torch.float64)  # fmt: skip
    expected = [np.polyfit(range(4), [1, 3, 2, 7], 1)[0], (1 - 5) / 2]
    got = fit_slopes(values)
    torch.testing.assert_close(got[:2], torch.tensor(expected))
    assert got[2].isnan(), "one point has no slope"


def test_an_absent_task_keeps_its_slope():
    weighting = coba(tasks(2), window=4, warmup_steps=2)
    run(weighting, curves(6)[:, :2].tolist())
    slope = weighting.slopes[-1, 1].clone()
    run(weighting, [([0.5], [0])] * 6, start=6)
    assert weighting.slopes[-1, 1] == slope


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_a_checkpoint_anywhere(cut):
    losses = curves(14).tolist()
    whole = run(coba(tasks(3), window=5, warmup_steps=3), losses)
    stopped = coba(tasks(3), window=5, warmup_steps=3)
    run(stopped, losses[:cut])
    rest = run(reloaded(stopped, coba(tasks(3), window=5, warmup_steps=3)), losses[cut:], start=cut)
    assert all(torch.equal(a, b) for a, b in zip(whole[cut:], rest, strict=True))


def test_validation_losses_are_recorded_before_the_step_and_those_of_the_step_are_not():
    class World:
        def losses(self, examples):
            assert examples == "held_out"
            return torch.tensor([2.0, float("nan")])

        def present(self, examples):
            return torch.tensor([0, 2])

    method = CoBa(tasks(3), window=4, warmup_steps=1)
    assert method.look_ahead_on == "validation" and CoBa(tasks(3), losses="train").look_ahead_on is None
    method.look_ahead(World())
    method.end_step(torch.tensor([9.0, 9.0, 9.0]), torch.arange(3))
    assert method.first[0] == 2.0 and method.first[1:].isnan().all() and method.steps == 1
