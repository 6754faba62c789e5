"""What every option of configs/sampler keeps to."""

from __future__ import annotations

import math
import pickle
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from runner.config.build import build
from runner.mixtures.samplers import Sampler
from runner.mixtures.stream import steps_per_epoch

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "sampler").glob("*.yaml"))
SIZES = {"a": 7, "b": 100, "c": 1000}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def config(request):
    return yaml.safe_load(request.param.read_text())


def test_there_are_options():
    assert {file.stem for file in FILES} >= {"all", "proportional", "uniform", "temperature", "round_robin"}


def test_the_header_says_what_it_costs(config, request):
    file = next(f for f in FILES if f.stem == request.node.callspec.id)
    comments = list(takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    assert comments[0].endswith(".")
    assert any(line.startswith("# cost: ") for line in comments)
    assert any(line.startswith("# run: runner train ") for line in comments)


def test_draws_are_data_sets_of_the_mixture(config):
    sampler = build(config, SIZES)
    assert isinstance(sampler, Sampler)
    for step in range(50):
        drawn = sampler.draw(step, 0)
        assert drawn
        assert set(drawn) <= set(SIZES)


def test_a_draw_is_a_function_of_step_and_seed(config):
    """Whoever asks, in whatever order, however often, in whatever process."""
    sampler, other = build(config, SIZES), build(config, SIZES)
    forward = [sampler.draw(step, 5) for step in range(40)]
    backward = [pickle.loads(pickle.dumps(other)).draw(step, 5) for step in reversed(range(40))]  # noqa: S301
    assert forward == backward[::-1]
    assert [sampler.draw(step, 5) for step in range(40)] == forward


def test_every_data_set_gets_its_turn(config):
    sampler = build(config, SIZES)
    assert {name for step in range(3000) for name in sampler.draw(step, 0)} == set(SIZES)


def test_the_order_of_draws_does_not_depend_on_global_generators(config):
    import numpy as np

    sampler = build(config, SIZES)
    np.random.seed(0)
    first = [sampler.draw(step, 1) for step in range(20)]
    np.random.seed(1)
    assert [sampler.draw(step, 1) for step in range(20)] == first


@pytest.mark.parametrize("batch_size", [1, 8, 5000])
def test_an_epoch_is_at_least_one_step_and_shrinks_with_the_batch(config, batch_size):
    sampler = build(config, SIZES)
    count = steps_per_epoch(SIZES, sampler, batch_size)
    assert count >= 1
    assert count >= math.ceil(max(SIZES.values()) / (batch_size * len(sampler.draw(0, 0))))


def test_one_data_set_is_enough(config):
    sampler = build(config, {"only": 3})
    assert set(sampler.draw(0, 0)) == {"only"}


def test_shares_are_how_often_data_sets_are_drawn(config):
    sampler = build(config, SIZES)
    drawn = [name for step in range(3000) for name in sampler.draw(step, 0)]
    assert sampler.shares().keys() == SIZES.keys()
    for name, share in sampler.shares().items():
        assert drawn.count(name) / 3000 == pytest.approx(share, abs=0.03)
