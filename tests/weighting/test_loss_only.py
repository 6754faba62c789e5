"""What every loss-only weighting of configs/weighting must hold, besides the conformance suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from runner.config.build import build
from runner.config.paths import config_root
from runner.errors import RunFailed
from runner.weighting.base import LossWeighting
from tests.weighting.cases import reloaded, run, tasks, weights_of

CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path(config_root()).glob("weighting/*.yaml"))}
NAMES = [name for name, config in CONFIGS.items() if isinstance(build(config, tasks(2)), LossWeighting)]
SHORT = {"coba": {"window": 3, "warmup_steps": 2, "losses": "train"}, "stch": {"warmup_epoch": 1}}
"""So that ten steps get past every warm-up."""


def make(name, k=3, **keys):
    return build(CONFIGS[name] | SHORT.get(name, {}) | keys, tasks(k))


def sequence(steps, k=3, seed=0):
    """Losses that fall at different rates, with noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(steps, k, generator=generator)
    return [
        [float((i + 1) * (0.8 + 0.05 * i) ** step * (1 + 0.2 * noise[step, i])) for i in range(k)]
        for step in range(steps)
    ]


def follow(weighting, losses, per_epoch=2, start=0):
    """As `run`, with the second losses a little below the first."""
    out = []
    for number, row in enumerate(losses, start):
        out += run(weighting, [row], per_epoch, number)
        values, present = row if isinstance(row, tuple) else (row, list(range(len(row))))
        if weighting.wants_second_losses:
            after = torch.tensor([v * 0.9 ** (v / (1 + v)) for v in values])
            weighting.after_update(after, torch.tensor(present))
    return out


def own_parameters_at(weighting, value):
    for p in weighting.parameters():
        p.data = torch.linspace(-value, value, len(p))


@pytest.mark.parametrize("name", NAMES)
def test_every_epoch_and_an_absent_task_survive_a_checkpoint(name):
    losses = [row if i % 3 else ([row[0], row[2]], [0, 2]) for i, row in enumerate(sequence(10))]
    first, stopped = make(name), make(name)
    whole = follow(first, losses)
    begun = follow(stopped, losses[:5])
    rest = follow(reloaded(stopped, make(name)), losses[5:], start=5)
    for want, got in zip(whole, begun + rest, strict=True):
        assert torch.equal(want, got)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rlw"])
def test_the_order_of_tasks_does_not_matter(name):
    order = [2, 0, 1]
    plain, permuted = make(name), make(name)
    own_parameters_at(plain, 0.5)
    for p, q in zip(plain.parameters(), permuted.parameters(), strict=True):
        q.data = p.data[order]
    if name == "uncertainty":
        permuted.factors = plain.factors[order]
    for want, got in zip(
        follow(plain, sequence(10)), follow(permuted, [[row[i] for i in order] for row in sequence(10)]), strict=True
    ):
        torch.testing.assert_close(got, want[order])


@pytest.mark.parametrize("name", [n for n in NAMES if "scale" in CONFIGS[n] and n != "focal_task"])  # see its own test
@pytest.mark.parametrize("scale", ["mean", "sum"])
def test_scale_says_what_the_weights_sum_to(name, scale):
    losses = [row if i % 3 else ([row[0], row[2]], [0, 2]) for i, row in enumerate(sequence(10))]
    for weights in follow(make(name, scale=scale), losses):
        expected = 1.0 if scale == "mean" else float(len(weights))
        assert weights.sum().item() == pytest.approx(expected, rel=1e-5)
        assert (weights >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_task_leaves_the_others_as_without_it(name):
    """Three tasks of which one never comes are two tasks."""
    losses = sequence(10, 2)
    two = follow(make(name, 2), losses)
    three = follow(make(name, 3), [(row, [0, 1]) for row in losses])
    for want, got in zip(two, three, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_any_label_changes_nothing(name):
    weighting, other = make(name), make(name)
    losses = sequence(6)
    follow(weighting, losses[:5])
    follow(other, losses[:5])
    weighting.begin_step(5, 2)
    assert weights_of(weighting, [], []).shape == (0,)
    weighting.end_step(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    if name not in ("rlw", "coba"):  # rlw has drawn, coba has shifted its window: as they must
        for got, want in zip(follow(weighting, losses[5:], start=5), follow(other, losses[5:], start=5), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_one_task_has_a_positive_weight(name):
    for weights in follow(make(name, 1), sequence(8, 1)):
        assert weights.shape == (1,) and weights.item() > 0
    if CONFIGS[name].get("scale") and name != "focal_task":
        assert weights.item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_all_sizes_at_once(name):
    rows = [[1e-6, 1.0, 1e6], [1e-6, 2.0, 1e5], [2e-6, 1.0, 1e6], [1e-3, 1e3, 1e-6]] * 3
    for weights in follow(make(name), rows):
        assert weights.isfinite().all() and weights.sum() > 0


@pytest.mark.parametrize("name", ["uncertainty_so", "gls", "si", "stch", "famo", "coba", "focal_task"])
def test_a_negative_loss_is_refused_by_name_and_before_the_state_changes(name):
    weighting = make(name)
    before = {k: v.clone() for k, v in weighting.state_dict().items()}
    with pytest.raises(RunFailed, match=rf"weighting={name} .*'b' \(-0\.5"):
        weighting.end_step(torch.tensor([1.0, -0.5, 2.0]), torch.arange(3))
    for key, value in weighting.state_dict().items():
        torch.testing.assert_close(value, before[key], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["uncertainty_so", "gls", "si", "stch", "coba"])
def test_a_loss_of_zero_is_refused_and_nan_is_not_its_business(name):
    with pytest.raises(RunFailed, match=r"'c' \(0\)"):
        make(name).end_step(torch.tensor([1.0, 0.0]), torch.tensor([0, 2]))
    make(name).end_step(torch.tensor([1.0, float("nan")]), torch.tensor([0, 2]))
