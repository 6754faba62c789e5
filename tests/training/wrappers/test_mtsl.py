"""MTSL's structural phases: similarity against its formula, groups by hand, and what a phase leaves behind."""

from __future__ import annotations

import copy

import pytest
import torch

from runner.config.static import Report
from runner.config.weighting_fit import wrapper_fit
from runner.errors import UserError
from tests.training.wrappers.real import TASKS, Real, check_promises, data, split
from tests.training.wrappers.worlds import option

NAMES = list(TASKS)


def phases(**keys):
    return option("wrapper", "mtsl", **{"first": 1, "every": 1, "examples": 4, "distil_steps": 3} | keys)


def disturb(made, name, size):
    torch.manual_seed(3)
    with torch.no_grad():
        for p in made.net.backbones[name].parameters():
            p.add_(size * torch.randn_like(p))


def test_similarity_is_linear_cka():
    made = Real("mtsl", phases())
    disturb(made, "depth", 0.3)
    made.net.eval()
    groups = list(made.wrapper._groups())
    found = made.wrapper.similarity(NAMES, 1, groups)
    with torch.no_grad():
        rows = []
        for name in NAMES:
            states = [made.net.states(g, {name: 2})[0][name][1] for g in groups]
            rows.append(torch.cat([s.permute(0, 2, 3, 1).flatten(0, 2) for s in states]).double())
    x, y = (r - r.mean(0) for r in rows)
    expected = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    torch.testing.assert_close(found[0, 1], expected)
    torch.testing.assert_close(found.diagonal(), torch.ones(2, dtype=torch.float64))
    assert 0 < expected < 0.999


def test_groups_need_every_pair():
    made = Real("mtsl", phases(threshold=0.7))
    alike = torch.tensor([[1, 0.9, 0.6, 0.1], [0.9, 1, 0.8, 0.1], [0.6, 0.8, 1, 0.75], [0.1, 0.1, 0.75, 1]])
    assert made.wrapper.cluster(alike, list("abcd")) == [["a", "b"], ["c", "d"]]
    assert made.wrapper.cluster(torch.eye(3), list("abc")) == [["a"], ["b"], ["c"]]
    assert made.wrapper.cluster(torch.ones(3, 3), list("abc")) == [["a", "b", "c"]]


def test_a_phase_groups_teaches_and_rewires():
    made = Real("mtsl", phases(threshold=0.0, distil_steps=60, lr=3e-3))
    disturb(made, "depth", 0.05)
    made.net.eval()
    with torch.no_grad():
        before = {n: made.net.states(data(), {n: 1})[0][n][0] for n in NAMES}
        mean = Real("mtsl", phases(threshold=0.0, distil_steps=0))
        mean.net.load_state_dict(made.net.state_dict())
    kept = made.net.backbones["segmentation"].trunk.encoder.stages[1].layers[0].layer[0].convolution.weight.clone()
    made.wrapper.phase()
    mean.wrapper.phase()
    assert made.net.groups()[0] == [NAMES] and made.net.groups()[1] == [["segmentation"], ["depth"]]
    assert int(made.wrapper.level) == 1

    def distance(net):
        with torch.no_grad():
            given = net.eval().states(data(), {"depth": 1})[0]["depth"][0]
        return sum(float((given - aim).square().sum() / aim.square().sum()) for aim in before.values())

    assert distance(made.net) < 0.9 * distance(mean.net)
    now = made.net.backbones["segmentation"].trunk.encoder.stages[1].layers[0].layer[0].convolution.weight
    assert torch.equal(now, kept)  # later stages are not touched


def test_different_tasks_stay_apart_and_later_stages_too():
    made = Real("mtsl", phases(threshold=0.99))
    disturb(made, "depth", 1.0)
    for _ in range(4):
        made.wrapper.phase()
    assert made.net.groups() == [[["segmentation"], ["depth"]]] * 4


def test_steps_group_stage_by_stage_and_share_gradients():
    made = Real("mtsl", phases(threshold=0.0))
    for step in range(6):
        _, grads = made.step(split(data(), 1), step)
        assert int(made.wrapper.level) == min(step, 4)
    assert made.net.groups() == [[NAMES]] * 4
    assert not any(n.startswith("backbones.depth") for n in grads)
    assert made.engine.reach.shared and len(made.engine.shared) == len(made.engine.reach.shared)


def test_it_goes_on_exactly_from_a_checkpoint():
    def steps(made, numbers):
        found = []
        optimizer = torch.optim.SGD(made.net.parameters(), lr=1e-3)
        for number in numbers:
            found.append(made.step(split(data(), 1), number)[1])
            optimizer.step()
        return found

    whole = Real("mtsl", phases(threshold=0.0))
    steps(whole, range(2))
    other = Real("mtsl", phases(threshold=0.0))
    other.net.load_state_dict(copy.deepcopy(whole.net.state_dict()))
    other.wrapper.load_state_dict(copy.deepcopy(whole.wrapper.state_dict()))
    for one, two in zip(steps(whole, range(2, 5)), steps(other, range(2, 5)), strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    assert whole.net.groups() == other.net.groups()


def test_promises_of_a_wrapper():
    check_promises("mtsl", phases(threshold=0.0), steps=2)


def test_what_cannot_work_is_said():
    with pytest.raises(UserError, match="changes which parameters are shared"):
        Real("mtsl", phases(), weighting="cagrad")
    report = Report()
    trainer = {"log_losses": False, "compile": False, "ema": 0.9}
    wrapper_fit({"wrapper": phases(), "weighting": option("weighting", "equal"), "trainer": trainer}, report)
    assert "averages weights over steps" in str(report.found)
