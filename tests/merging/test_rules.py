"""Rules against closed forms, brute force, and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from runner.errors import UserError
from runner.merging.blocks import Split
from runner.merging.draws import uniform
from runner.merging.engine import Engine
from runner.merging.linalg import orthogonalise, thin_svd
from runner.merging.memory import merge_in_memory
from runner.merging.rules.average import Average
from runner.merging.rules.frank_wolfe import FrankWolfe
from runner.merging.rules.knots import Knots
from runner.merging.rules.masks import Consensus, Emr, TallMask
from runner.merging.rules.model_stock import MetaGPT, ModelStock
from runner.merging.rules.pcb import Pcb
from runner.merging.rules.quantised import Rtvq, Tvq
from runner.merging.rules.sce import ArceeFusion, Sce
from runner.merging.rules.slerp import Karcher, Multislerp, Nearswap, Nuslerp, Slerp, sphere_mean
from runner.merging.rules.spectral import IsoC, IsoCts, TsvM
from runner.merging.rules.subtract import Subtract
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.rules.ties import Ties
from runner.merging.rules.wudi import Wudi
from runner.merging.sources import Models
from runner.merging.transforms.drop import Dare, Magprune
from runner.merging.transforms.trim import Breadcrumbs, Trim


def merged(merge, *experts, base=None):
    """One tensor 'w' of every model."""
    named = {chr(97 + t): {"w": torch.as_tensor(e, dtype=torch.float32)} for t, e in enumerate(experts)}
    origin = None if base is None else {"w": torch.as_tensor(base, dtype=torch.float32)}
    return merge_in_memory(merge, Models.in_memory(named, origin))


def weights(merge, *experts, base=None):
    return merged(merge, *experts, base=base).tensors["w"]


def same(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=tolerance, atol=tolerance)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- sums ----------------------------------------------------------------------------------------------------------


def test_average_and_weights():
    same(weights(Average(), [1.0, 2.0], [3.0, 6.0]), [2.0, 4.0])
    same(weights(Average(weights=[3.0, 1.0], normalize=True), [1.0, 2.0], [5.0, 6.0]), [2.0, 3.0])
    same(weights(Average(weights=[3.0, 1.0]), [1.0, 2.0], [5.0, 6.0]), [8.0, 12.0])


def test_addition_negation_and_analogy():
    base, a, b, c = [1.0, 1.0], [2.0, 1.0], [1.0, 3.0], [0.0, 5.0]
    same(weights(TaskArithmetic(scale=0.5), a, b, base=base), [1.5, 2.0])
    same(weights(TaskArithmetic(scale=1.0, weights=[-1.0]), a, base=base), [0.0, 1.0])
    same(weights(TaskArithmetic(scale=1.0, weights=[-1.0, 1.0, 1.0]), a, b, c, base=base), [-1.0, 7.0])


def test_layers_scale_the_tensors_they_name():
    base = {"x.w": torch.zeros(2), "y.w": torch.zeros(2)}
    experts = {e: {n: torch.ones(2) * v for n in base} for e, v in (("a", 1.0), ("b", 10.0))}
    found = merge_in_memory(
        TaskArithmetic(scale=1.0, layers={"x.*": [1.0, 0.5], "re:^y": 2}), Models.in_memory(experts, base)
    ).tensors
    same(found["x.w"], [6.0, 6.0])
    same(found["y.w"], [22.0, 22.0])


def test_metagpt_weighs_by_squared_norms():
    same(weights(MetaGPT(), [3.0, 0.0], [0.0, 4.0], base=[0.0, 0.0]), [3 * 9 / 25, 4 * 16 / 25])


def test_model_stock_at_a_known_angle():
    first, second = [1.0, 0.0], [math.cos(1.0), math.sin(1.0)]
    ratio = 2 * math.cos(1.0) / (1 + math.cos(1.0))
    same(
        weights(ModelStock(), first, second, base=[0.0, 0.0]), ratio * (torch.tensor(first) + torch.tensor(second)) / 2
    )


def test_model_stock_gives_the_base_at_its_pole():
    same(weights(ModelStock(), [2.0, 1.0], [0.0, 1.0], base=[1.0, 1.0]), [1.0, 1.0])  # cos = -1 = -1/(T-1)


def test_subtract_takes_the_general_task_vector_away():
    same(weights(Subtract(amount=0.5), [2.0, 0.0], [3.0, 1.0], [5.0, 3.0], base=[0.0, 0.0]), [3.0, 2.0])


# ---- signs and thresholds ------------------------------------------------------------------------------------------


def brute_ties(deltas, density, aggregate):
    keep = max(1, round(density * deltas.shape[1]))
    trimmed = np.zeros_like(deltas)
    for row, tau in zip(trimmed, deltas, strict=True):
        threshold = np.sort(np.abs(tau))[::-1][keep - 1]
        row[:] = np.where(np.abs(tau) >= threshold, tau, 0)
    sign = np.sign(trimmed.sum(0))
    agree = (np.sign(trimmed) == sign) & (trimmed != 0)
    total = (trimmed * agree).sum(0)
    return total / np.maximum(agree.sum(0), 1) if aggregate == "mean" else total


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.7, 1.0])
def test_ties_is_the_paper_s_algorithm(density, aggregate):
    deltas = random(5, 400).numpy() ** 3
    found = weights(Ties(density=density, aggregate=aggregate), *deltas, base=np.zeros(400))
    same(found, brute_ties(deltas, density, aggregate))


def test_ties_by_hand():
    #        kept: 3 of 4 each;   sums of signs: +, -, 0 is not elected, +
    a, b = [4.0, -1.0, 2.0, 0.5], [2.0, -3.0, -2.0, 0.1]
    same(weights(Ties(density=0.75), a, b, base=[0.0] * 4), [3.0, -2.0, 0.0, 0.0])


def test_ties_ranks_over_the_whole_model_or_every_tensor():
    base = {"big": torch.zeros(10), "small": torch.zeros(10)}
    expert = {"big": torch.arange(1.0, 11) * 100, "small": torch.arange(1.0, 11)}
    there = Models.in_memory({"a": expert}, base)
    whole = merge_in_memory(Ties(density=0.5), there).tensors
    each = merge_in_memory(Ties(density=0.5, scope="tensor"), there).tensors
    assert (whole["big"] != 0).sum() == 10 and (whole["small"] != 0).sum() == 0
    assert (each["big"] != 0).sum() == 5 and (each["small"] != 0).sum() == 5


def test_ties_with_uneven_weights():
    found = weights(Ties(density=1.0, weights=[1.0, 3.0]), [2.0, -1.0], [1.0, 1.0], base=[0.0, 0.0])
    same(found, [(2 + 3) / 4, 1.0])


def test_breadcrumbs_drops_both_ends():
    tau = torch.arange(1.0, 11.0) * torch.tensor([1.0, -1.0] * 5)
    found = weights(TaskArithmetic(scale=1.0, pre=[Breadcrumbs(largest=0.1, smallest=0.5)]), tau, base=torch.zeros(10))
    same(found, torch.where((tau.abs() > 5) & (tau.abs() < 10), tau, 0.0))
    tiny = weights(TaskArithmetic(scale=1.0, pre=[Breadcrumbs()]), [5.0], base=[0.0])
    same(tiny, [5.0])  # a tensor of one value is not emptied


def test_trim_rescaled():
    found = weights(
        TaskArithmetic(scale=1.0, pre=[Trim(density=0.5, rescale=True)]), [1.0, -4.0, 2.0, 8.0], base=[0.0] * 4
    )
    same(found, [0.0, -8.0, 0.0, 16.0])


def test_sce_by_brute_force():
    deltas = random(4, 60)
    density = 0.3
    variance = deltas.var(0, unbiased=False)
    mask = variance >= variance.sort(descending=True).values[round(density * 60) - 1]
    kept = deltas * mask
    share = kept.square().sum(1) / kept.square().sum()
    agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    expected = (share[:, None] * kept * agree).sum(0) / (share[:, None] * agree).sum(0).clamp_min(1e-30)
    same(weights(Sce(density=density), *deltas, base=torch.zeros(60)), expected)


def test_pcb_by_brute_force():
    deltas = random(3, 500)
    density, clip = 0.2, 0.01

    def scaled(rows):
        low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
        return (rows - low) / (high - low)

    sizes = deltas.abs()
    order = sizes.sort(1, descending=True).values
    clipped = torch.minimum(torch.maximum(sizes, order[:, 495 - 1 : 495]), order[:, 5:6])  # 1 % on either side
    score = torch.exp(3 * scaled(clipped) ** 2) * torch.tanh(deltas * deltas.sum(0))
    floor = score.sort(1, descending=True).values[:, 100 - 1 : 100]
    share = scaled(torch.maximum(score, floor))
    expected = (deltas.sign() * clipped * share).sum(0) / share.sum(0).clamp_min(1e-12)
    found = weights(Pcb(density=density, clip=clip, scale=1.0), *deltas, base=torch.zeros(500))
    same(found, expected, 1e-4)


def test_arcee_fusion_keeps_outliers_only():
    base = random(20, 30)
    tau = random(20, 30, seed=1) * 0.01
    tau[3, 4] = 5.0
    found = weights(ArceeFusion(), base + tau, base=base)
    assert found[3, 4] == pytest.approx(float((base + tau)[3, 4]))
    changed = float((found != base).float().mean())
    assert 0 < changed < 0.3


# ---- draws ---------------------------------------------------------------------------------------------------------


def test_dare_is_unbiased_and_drops_its_share():
    base, expert = torch.zeros(40_000), torch.ones(40_000)
    found = weights(TaskArithmetic(scale=1.0, pre=[Dare(rate=0.9)]), expert, base=base)
    assert set(found.unique().tolist()) == {0.0, 1 / (1 - 0.9) * 1.0} or len(found.unique()) == 2
    assert float(found.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(9 / 40_000))
    assert float((found == 0).float().mean()) == pytest.approx(0.9, abs=0.01)


def test_draws_differ_by_seed_tensor_and_expert_only():
    there = Models.in_memory({"a": {"x": torch.ones(99), "y": torch.ones(99)}}, {n: torch.zeros(99) for n in "xy"})
    work = Engine(TaskArithmetic(), there, ["x", "y"])
    x, y = (work.block(p) for p in work.pieces())
    first = uniform(0, x, 0)
    assert torch.equal(first, uniform(0, x, 0))
    for other in (uniform(1, x, 0), uniform(0, y, 0), uniform(0, x, 1)):
        assert not torch.equal(first, other)


def test_magprune_drops_small_changes_more_often():
    tau = torch.linspace(0.01, 1.0, 1000).repeat(400, 1)
    found = weights(TaskArithmetic(scale=1.0, pre=[Magprune(density=0.5, spread=0.4)]), tau, base=torch.zeros_like(tau))
    kept = (found != 0).float().mean(0)
    assert float(kept[:100].mean()) == pytest.approx(0.32, abs=0.02)  # 1 - (p + spread/2), averaged over a tenth
    assert float(kept[-100:].mean()) == pytest.approx(0.68, abs=0.02)
    torch.testing.assert_close(found.mean(0).mean(), tau.mean(), rtol=0.02, atol=0.0)  # unbiased entry by entry


@pytest.mark.parametrize("make", [lambda: Dare(rate=1.0), lambda: Magprune(density=0.05, spread=0.2)])
def test_impossible_rates_are_refused(make):
    with pytest.raises(UserError):
        make()


# ---- spheres -------------------------------------------------------------------------------------------------------


def test_slerp_on_the_circle():
    found = weights(Slerp(t=0.25), [2.0, 0.0], [0.0, 2.0])
    same(found, [2 * math.cos(math.pi / 8), 2 * math.sin(math.pi / 8)])
    same(weights(Slerp(t=0.0), [2.0, 1.0], [0.0, 3.0]), [2.0, 1.0])
    same(weights(Slerp(t=1.0), [2.0, 1.0], [0.0, 3.0]), [0.0, 3.0])
    same(weights(Slerp(t=0.25), [1.0, 1.0], [3.0, 3.0]), [1.5, 1.5])  # parallel: linear
    same(weights(Slerp(t=0.5, t_at={"w": 1.0}), [2.0, 1.0], [0.0, 3.0]), [0.0, 3.0])


def test_nuslerp_of_rows_and_of_task_vectors():
    first, second = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]
    half = math.sqrt(0.5)
    same(weights(Nuslerp(by="rows"), first, second), [[half, half], [0.0, 1.0]])
    base = [10.0, 10.0]
    same(weights(Nuslerp(weights=[1.0, 3.0]), [11.0, 10.0], [10.0, 11.0], base=base),
         [10 + math.cos(3 * math.pi / 8), 10 + math.sin(3 * math.pi / 8)])  # fmt: skip


def test_karcher_is_the_minimiser_on_the_sphere():
    units = torch.nn.functional.normalize(random(4, 3).double(), dim=1)
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def cost(angles):
        x = np.array([np.sin(angles[0]) * np.cos(angles[1]), np.sin(angles[0]) * np.sin(angles[1]), np.cos(angles[0])])
        return float((shares.numpy() * np.arccos(np.clip(units.numpy() @ x, -1, 1)) ** 2).sum())

    found = sphere_mean(units, shares, 200, 1e-12).numpy()
    start = [np.arccos(found[2]), np.arctan2(found[1], found[0])]
    best = scipy.optimize.minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    assert cost(start) <= best.fun + 1e-9


@pytest.mark.parametrize("merge", [Karcher(), Multislerp()])
def test_two_models_meet_in_the_middle_of_the_arc(merge):
    found = weights(merge, [3.0, 0.0], [0.0, 1.0])
    same(found, [2 * math.sqrt(0.5)] * 2)


def test_nearswap_clips_changes():
    same(weights(Nearswap(t=0.5), [1.2, -3.0], base=[1.0, 1.0]), [1.2, 0.5])


# ---- masks and codes -----------------------------------------------------------------------------------------------


def test_tall_masks_by_hand():
    base, a, b = [0.0] * 3, [1.0, 1.0, -2.0], [0.1, 1.0, 2.5]
    # total: 1.1, 2.0, 0.5; |a| >= .4 |b|: yes, yes, yes; |b| >= .4 |a|: no, yes, yes
    found = merged(TallMask(threshold=0.4), a, b, base=base)
    same(found.for_task("a")["w"], [1.1, 2.0, 0.5])
    same(found.for_task("b")["w"], [0.0, 2.0, 0.5])
    assert found.parts["a"]["w"].numel() == 1  # a bit per weight
    same(weights(Consensus(threshold=0.4, agree=2, scale=1.0), a, b, base=base), [0.0, 2.0, 0.5])


def test_emr_by_hand():
    base, a, b = [0.0] * 3, [1.0, -1.0, 2.0], [3.0, -0.5, -1.0]
    found = merged(Emr(), a, b, base=base)
    same(found.tensors["w"], [3.0, -1.0, 2.0])
    same(found.for_task("a")["w"], torch.tensor([3.0, -1.0, 2.0]) * 4.0 / 6.0)
    same(found.for_task("b")["w"], torch.tensor([3.0, -1.0, 0.0]) * 4.5 / 4.0)


def test_quantised_task_vectors_are_as_near_as_their_bits_allow():
    base, experts = random(300, seed=9), [random(300, seed=s) for s in range(3)]
    for bits in (2, 4, 8):
        found = merged(Tvq(bits=bits), *experts, base=base)
        for e, expert in zip("abc", experts, strict=True):
            tau = expert - base
            step = float(tau.max() - tau.min()) / (2**bits - 1)
            assert float((found.for_task(e)["w"] - expert).abs().max()) <= step / 2 + 1e-5
            assert found.parts[e]["w"].numel() == math.ceil(300 / 8) * bits
        restored = torch.stack([found.for_task(e)["w"] - base for e in "abc"])
        same(found.tensors["w"], base + 0.3 * restored.sum(0), 1e-5)


def test_residuals_are_smaller_than_task_vectors():
    """Experts that share much: two bits of residual after three of the mean beat three bits each."""
    base, common = torch.zeros(2000), random(2000, seed=1)
    experts = [common + 0.1 * random(2000, seed=s) for s in range(2, 6)]

    def error(merge):
        found = merged(merge, *experts, base=base)
        return sum(float((found.for_task(e)["w"] - x).square().sum()) for e, x in zip("abcd", experts, strict=True))

    assert error(Rtvq(bits=2, common_bits=3)) < 0.6 * error(Tvq(bits=3))


# ---- spectra -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (90, 6), (6, 90)])
def test_thin_svd(shape):
    matrix = random(*shape)
    u, s, vt = thin_svd(matrix)
    torch.testing.assert_close((u * s) @ vt, matrix, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(u.T @ u, torch.eye(min(shape)), rtol=1e-5, atol=1e-5)


def test_orthogonalise_is_the_polar_factor():
    matrix = random(6, 4)
    root = torch.linalg.cholesky(matrix.T @ matrix)
    found = orthogonalise(matrix)
    torch.testing.assert_close(found.T @ found, torch.eye(4), rtol=1e-5, atol=1e-5)
    assert float((found - matrix).norm()) <= float((matrix @ torch.linalg.inv(root.T) - matrix).norm()) + 1e-6


def test_tsv_of_orthogonal_tasks_is_their_sum():
    """Two rank-one tasks in different rows and columns do not interfere: nothing is to be whitened."""
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[0, 1], b[2, 3] = 3.0, 5.0
    same(weights(TsvM(), a, b, base=torch.zeros(4, 4)), a + b)
    same(weights(TsvM(), [2.0, 4.0], [0.0, 2.0], base=[0.0, 0.0]), [1.0, 3.0])  # vectors: the mean


def test_tsv_keeps_a_share_of_the_rank_of_each():
    found = weights(TsvM(), random(9, 9), random(9, 9, seed=1), random(9, 9, seed=2), base=torch.zeros(9, 9))
    assert int(torch.linalg.matrix_rank(found)) == 9
    two = weights(TsvM(), random(9, 9), random(9, 9, seed=1), base=torch.zeros(9, 9))
    assert int(torch.linalg.matrix_rank(two)) == 8  # 2 x 9 // 2


def test_iso_has_an_even_spectrum():
    a, b = random(6, 5), random(6, 5, seed=1)
    values = torch.linalg.svdvals(weights(IsoC(), a, b, base=torch.zeros(6, 5)))
    same(values, [float(torch.linalg.svdvals(a + b).mean())] * 5, 1e-5)
    values = torch.linalg.svdvals(weights(IsoCts(common=0.5), a, b, base=torch.zeros(6, 5)))
    same(values, [float(values.mean())] * 5, 1e-5)


def test_iso_cts_without_room_for_tasks_is_iso_c():
    a, b = random(6, 5), random(6, 5, seed=1)
    same(weights(IsoCts(common=1.0), a, b, base=torch.zeros(6, 5)), weights(IsoC(), a, b, base=torch.zeros(6, 5)), 1e-5)


@pytest.mark.parametrize("kind", [TsvM, IsoC, IsoCts, Wudi, FrankWolfe])
def test_filters_are_averaged_or_matrices(kind):
    """What `pre` does to a filter it does to the filter, not to a matrix."""
    filters = [random(4, 3, 2, 2, seed=s) for s in range(3)]
    base = random(4, 3, 2, 2, seed=9)
    tau = sum(f - base for f in filters) / 3
    same(weights(kind(scale=0.5), *filters, base=base), base + 0.5 * tau, 1e-5)
    trim = {"_target_": "runner.merging.transforms.trim.Trim", "density": 0.5}
    for pre in ([], [trim]):
        found = weights(kind(scale=0.5, kernels="matrix", pre=pre), *filters, base=base)
        flat = weights(kind(scale=0.5, pre=pre), *(f.flatten(1) for f in filters), base=base.flatten(1))
        same(found.flatten(1), flat, 1e-5)


def test_knots_mean_is_the_mean():
    """A linear rule in a shared basis is the same rule outside it."""
    a, b = random(6, 5), random(6, 5, seed=1)
    same(weights(Knots(aggregate="mean"), a, b, base=torch.zeros(6, 5)), (a + b) / 2, 1e-5)


def test_knots_ties_by_brute_force():
    a, b = random(6, 5), random(6, 5, seed=1)
    u, s, vt = torch.linalg.svd(torch.cat([a, b], 1), full_matrices=False)
    parts = vt.reshape(6, 2, 5).permute(1, 0, 2).reshape(2, 30)
    expected = (u * s) @ torch.from_numpy(brute_ties(parts.numpy(), 0.4, "mean")).float().view(6, 5)
    same(weights(Knots(density=0.4), a, b, base=torch.zeros(6, 5)), expected, 1e-4)


def test_wudi_descends_its_objective():
    taus = [random(8, 6, seed=s) * 0.01 for s in range(3)]

    def objective(tau):
        return float(sum(((tau - t) @ t.T).square().sum() / t.square().sum() for t in taus))

    found = weights(Wudi(steps=200, lr=1e-4), *taus, base=torch.zeros(8, 6))
    gram = sum(t.T @ t / t.square().sum() for t in taus)
    target = sum(t @ t.T @ t / t.square().sum() for t in taus)
    least = objective(target @ torch.linalg.inv(gram))
    assert objective(found) < least + 0.2 * (objective(sum(taus)) - least)


def test_wudi_takes_the_gradient_of_its_objective():
    taus = [random(4, 3, seed=s) for s in range(2)]
    start = sum(taus).requires_grad_()
    loss = sum(((start - t) @ t.T).square().sum() / t.square().sum() for t in taus)
    (gradient,) = torch.autograd.grad(loss, start)
    found = weights(Wudi(steps=1, lr=1e-3), *taus, base=torch.zeros(4, 3))  # Adam's first step: the sign
    same(found, start.detach() - 1e-3 * gradient.sign(), 1e-5)


# ---- what strategies refuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merge", "count", "based", "words"),
    [
        (Ties(), 2, False, "needs the base"),
        (Slerp(), 3, False, "2 experts at most"),
        (Subtract(), 1, True, "2 experts or more"),
        (TaskArithmetic(weights=[1.0]), 2, True, "1 values for 2 experts"),
        (Average(weights=[1.0, -1.0], normalize=True), 2, True, "sum to 0"),
        (Average(pre=[Dare()]), 2, False, "needs the base"),
        (TaskArithmetic(layers={"w": [1.0]}), 2, True, "1 values for 2 experts"),
        (TaskArithmetic(layers={"w": "much"}), 2, True, "must be a number"),
        (TaskArithmetic(post=[Trim()]), 2, True, "merge.post"),
        (Tvq(bits=20), 2, True, "more than 16 bits"),
        (Slerp(weights=[0.7, 0.3]), 2, False, "merge.weights means nothing to Slerp"),
    ],
)
def test_refusals(merge, count, based, words):
    experts = [torch.ones(3) * t for t in range(count)]
    with pytest.raises(UserError, match=words):
        merged(merge, *experts, base=torch.zeros(3) if based else None)


def test_a_split_block_is_not_a_tensor():
    there = Models.in_memory({"a": {"w": torch.ones(3)}}, {"w": torch.zeros(3)})
    work = Engine(TallMask(), there, ["w"])
    work.prepare()
    assert isinstance(work.merged(next(iter(work.pieces()))), Split)
