"""TSV-C, Frank-Wolfe, delta-guided fusion and layer masks against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from runner.merging.engine import Engine
from runner.merging.factors import factor_bytes, pack_factors, pack_whole, rebuild
from runner.merging.memory import merge_in_memory
from runner.merging.rules.delta_guided import DeltaGuided
from runner.merging.rules.frank_wolfe import FrankWolfe, interference
from runner.merging.rules.spectral import TsvM
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.rules.ties import Ties
from runner.merging.rules.tsv_c import TsvC
from runner.merging.sources import Models
from runner.merging.transforms.layers import LayerMask


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(merge, *experts, base=None):
    named = {chr(97 + t): {"w": torch.as_tensor(e, dtype=torch.float32)} for t, e in enumerate(experts)}
    like = next(iter(named.values()))["w"]
    origin = torch.zeros_like(like) if base is None else base
    return merge_in_memory(merge, Models.in_memory(named, {"w": origin}))


# ---- factors as bytes ----------------------------------------------------------------------------------------------


def test_factors_come_back_and_take_the_bytes_they_said():
    u, s, vt = torch.linalg.svd(random(20, 12), full_matrices=False)
    packed = pack_factors(u[:, :3], s[:3], vt[:3], 3)
    assert packed.dtype == torch.uint8 and len(packed) == factor_bytes((20, 12), 3) == 4 + 3 * (2 * 32 + 4)
    expected = (u[:, :3] * s[:3]) @ vt[:3]
    torch.testing.assert_close(rebuild(packed, (20, 12)), expected, rtol=0, atol=2e-3 * float(s[0]))
    short = pack_factors(u[:, :1], s[:1], vt[:1], 3)  # fewer directions than the rank: the same bytes
    assert len(short) == len(packed)
    torch.testing.assert_close(rebuild(short, (20, 12)), (u[:, :1] * s[:1]) @ vt[:1], rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(), (7,), (3, 2, 2), (1, 9)])
def test_what_is_no_matrix_is_stored_exactly(shape):
    tensor = random(*shape)
    packed = pack_whole(tensor)
    assert len(packed) == factor_bytes(shape, 1) and torch.equal(rebuild(packed, shape), tensor)


# ---- TSV-C ---------------------------------------------------------------------------------------------------------


def test_tsv_c_restores_the_best_approximation_of_each_task():
    base, experts = random(24, 16, seed=9), [random(24, 16, seed=s) for s in range(4)]
    found = merged(TsvC(), *experts, base=base)
    for name, expert in zip("abcd", experts, strict=True):
        u, s, vt = torch.linalg.svd(expert - base, full_matrices=False)
        best = base + (u[:, :4] * s[:4]) @ vt[:4]  # Eckart-Young at 16 / 4
        torch.testing.assert_close(found.for_task(name)["w"], best, rtol=0, atol=5e-3)
        assert len(found.parts[name]["w"]) == factor_bytes((24, 16), 4) < 0.25 * 4 * 24 * 16
    torch.testing.assert_close(found.tensors["w"], merged(TsvM(), *experts, base=base).tensors["w"])


def test_tsv_c_keeps_more_where_asked():
    experts = [random(24, 16, seed=s) for s in range(4)]

    def error(keep):
        found = merged(TsvC(keep=keep), *experts)
        return sum(float((found.for_task(n)["w"] - e).norm()) for n, e in zip("abcd", experts, strict=True))

    assert error(0.5) < 0.7 * error(0.1)
    assert error(1.0) == 0.0  # stored whole


# ---- Frank-Wolfe ---------------------------------------------------------------------------------------------------


def objective(tau, taus):
    return float(sum(((tau - t) @ t.T).double().square().sum() / t.double().square().sum() for t in taus))


def test_frank_wolfe_finds_the_least_interference_of_the_hull():
    scales = (1.0, 0.3, 2.0)
    taus = [scale * random(7, 5, seed=s) for s, scale in enumerate(scales)]

    def cost(z):
        c = np.exp(z - z.max())
        return objective(sum(x * t for x, t in zip((c / c.sum()).tolist(), taus, strict=True)), taus)

    best = min(scipy.optimize.minimize(cost, start, method="Nelder-Mead").fun for start in ([0, 0, 0], [3, 0, 0]))
    found = merged(FrankWolfe(steps=2000, tolerance=1e-9), *taus).tensors["w"]
    assert objective(found, taus) <= best * (1 + 1e-4)
    assert objective(found, taus) < 0.99 * objective(sum(taus) / 3, taus)


def test_the_objective_in_coefficients_is_the_objective():
    taus = [random(6, 4, seed=s) for s in range(3)]
    quadratic, linear = interference(taus)
    constant = sum(float((t @ t.T).square().sum() / t.square().sum()) for t in taus)
    for c in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.2, 0.5, 0.3])):
        c = c.double()
        expected = objective(sum(float(x) * t for x, t in zip(c, taus, strict=True)), taus)
        assert float(c @ quadratic @ c - 2 * linear @ c) + constant == pytest.approx(expected, rel=1e-4)


def test_frank_wolfe_without_steps_is_the_mean():
    taus = [random(6, 4, seed=s) for s in range(2)]
    torch.testing.assert_close(merged(FrankWolfe(steps=0), *taus).tensors["w"], sum(taus) / 2)
    torch.testing.assert_close(merged(FrankWolfe(), random(5), random(5, seed=1)).tensors["w"],
                               (random(5) + random(5, seed=1)) / 2)  # fmt: skip


# ---- delta-guided fusion -------------------------------------------------------------------------------------------


def test_delta_guided_by_hand():
    a, b = [1.0, -3.0, 0.0], [3.0, 1.0, 0.0]
    found = merged(DeltaGuided(), a, b).tensors["w"]
    torch.testing.assert_close(found, torch.tensor([10 / 4, -8 / 4, 0.0]))
    found = merged(DeltaGuided(weights=[3.0, 1.0]), a, b).tensors["w"]
    torch.testing.assert_close(found, torch.tensor([12 / 6, -26 / 10, 0.0]))
    found = merged(DeltaGuided(level="tensor"), a, b).tensors["w"]
    torch.testing.assert_close(found, torch.tensor([2.0, -1.0, 0.0]))  # both moved by 4: equal weights
    found = merged(DeltaGuided(level="tensor"), [3.0, 3.0], [1.0, 1.0]).tensors["w"]
    torch.testing.assert_close(found, torch.tensor([10 / 4, 10 / 4]))


# ---- layer masks ---------------------------------------------------------------------------------------------------


def deltas(transform, weights=None, **sizes):
    """Kept layers per expert: every layer's task vectors are constants of these sizes."""
    base = {name: torch.zeros(4) for name in sizes}
    count = len(next(iter(sizes.values())))
    experts = {chr(97 + t): {n: torch.full((4,), float(v[t])) for n, v in sizes.items()} for t in range(count)}
    engine = Engine(TaskArithmetic(pre=[transform], weights=weights), Models.in_memory(experts, base), list(sizes))
    engine.prepare()
    blocks = [engine.block(piece) for piece in engine.pieces()]
    return {e: {b.name for b in blocks if b.delta(t).any()} for t, e in enumerate(experts)}


def test_a_task_gives_up_the_layers_that_others_changed_more():
    sizes = {"x": (1.0, 9.0), "y": (2.0, 1.0), "z": (5.0, 5.1)}
    assert deltas(LayerMask(keep=1 / 3, level="tensor"), **sizes) == {"a": {"y"}, "b": {"x"}}
    assert deltas(LayerMask(keep=2 / 3, level="tensor"), **sizes) == {"a": {"y", "z"}, "b": {"x", "z"}}
    assert deltas(LayerMask(keep=1 / 3, level="tensor", score="size"), **sizes) == {"a": {"z"}, "b": {"x"}}
    assert deltas(LayerMask(keep=0.0, level="tensor"), **sizes)["a"] == {"y"}  # one at least
    assert deltas(LayerMask(keep=1.0, level="tensor"), **sizes)["b"] == {"x", "y", "z"}


def test_experts_that_are_not_merged_do_not_decide_about_layers():
    sizes = {"x": (1.0, 9.0, 1.0), "y": (2.0, 1.0, 90.0)}
    assert deltas(LayerMask(keep=0.5, level="tensor"), **sizes)["a"] == {"x"}
    assert deltas(LayerMask(keep=0.5, level="tensor"), [1.0, 1.0, 0.0], **sizes)["a"] == {"y"}


def test_a_block_stays_or_goes_as_a_whole():
    mask = LayerMask()
    assert mask.layer("backbone.layers.3.attn.q.weight") == "backbone.layers.3"
    assert mask.layer("backbone.stages.0.layers.1.conv.bias") == "backbone.stages.0.layers.1"
    assert mask.layer("backbone.norm.weight") == "backbone.norm" and mask.layer("w") == "w"


def test_other_rules_take_the_mask():
    base = {"layers.0.w": torch.zeros(3), "layers.1.w": torch.zeros(3)}
    one = {"layers.0.w": torch.ones(3), "layers.1.w": torch.ones(3)}
    two = {"layers.0.w": torch.full((3,), 2.0), "layers.1.w": torch.full((3,), 0.5)}
    merge = Ties(density=1.0, pre=[LayerMask(keep=0.5)])
    found = merge_in_memory(merge, Models.in_memory({"a": one, "b": two}, base)).tensors
    assert found["layers.0.w"].tolist() == [2.0] * 3 and found["layers.1.w"].tolist() == [1.0] * 3
