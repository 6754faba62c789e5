"""ZipIt! and activation matching: permuted models come back, greedy joins against brute force, statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.errors import UserError
from runner.merging.sources import Models
from runner.merging.units import find_units
from runner.merging.with_data.common import base_of, experts_of
from runner.merging.with_data.zipit import ZipIt
from runner.merging.with_data.zipping import correlation, matrices, permutations, zipped
from tests.merging.toy import ToyBackbone, body, make, outputs, outputs_of


def permuted_pair(noise: float = 0.0):
    """Expert b is expert a with its units in another order, and its head reads them so."""
    models, data = make(tasks={"a": 3, "b": 3}, rows=60)
    tensors = experts_of(models)["a"]
    heads, moved = data.model.heads, dict(tensors)
    for number, group in enumerate(find_units(data, tensors, set(tensors))):
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(7 + number))
        moved |= {n: moved[n].index_select(a, order) for n, a in group.axes.items()}
        if group.headed:
            with torch.no_grad():
                heads["b"].out.weight.copy_(heads["a"].out.weight[:, order])
                heads["b"].out.bias.copy_(heads["a"].out.bias)
    moved = {n: t + noise * torch.randn(t.shape) for n, t in moved.items()}
    return Models.in_memory({"a": tensors, "b": moved}, base_of(models)), data


@pytest.mark.parametrize("match", ["zip", "permute"])
def test_a_permuted_model_is_merged_without_loss(match):
    models, data = permuted_pair()
    experts = experts_of(models)
    merged = ZipIt(match=match, within=0.0).fit(models, data)
    assert merged.report["joined"] == 2 and merged.report["correlation"] > 0.999
    found = outputs(merged.module, data)
    for task in ("a", "b"):
        torch.testing.assert_close(found[task], outputs_of(experts[task], data)[task], rtol=1e-4, atol=1e-4)
    mean = {n: (experts["a"][n] + experts["b"][n]) / 2 for n in experts["a"]}
    assert float((outputs_of(mean, data)["a"] - outputs_of(experts["a"], data)["a"]).abs().max()) > 0.1
    assert all(not bank.names for bank in merged.module.own.values())  # one model for both


def test_a_permuted_model_with_noise_is_merged_better_than_by_the_average():
    models, data = permuted_pair(noise=0.02)
    experts = experts_of(models)
    found = outputs(ZipIt(match="permute").fit(models, data).module, data)
    mean = {n: (experts["a"][n] + experts["b"][n]) / 2 for n in experts["a"]}
    want = outputs_of(experts["b"], data)["b"]
    assert float((found["b"] - want).norm()) < 0.2 * float((outputs_of(mean, data)["b"] - want).norm())


def test_depth_zero_keeps_every_expert_and_half_shares_the_first_layers():
    models, data = make(rows=30)
    experts = experts_of(models)
    apart = ZipIt(depth=0.0).fit(models, data)
    found = outputs(apart.module, data)
    for task in experts:
        torch.testing.assert_close(found[task], outputs_of(experts[task], data)[task])
    half = ZipIt(depth=0.5).fit(models, data)
    assert set(half.module.own["a"].names) == {"backbone.second.weight", "backbone.second.bias"}
    assert set(half.module.shared.names) == {
        "backbone.first.weight", "backbone.first.bias", "backbone.norm.weight", "backbone.norm.bias"
    }  # fmt: skip

    def distance(merged):
        got = outputs(merged.module, data)
        return sum(float((got[t] - outputs_of(experts[t], data)[t]).norm()) for t in experts)

    assert distance(half) < distance(ZipIt().fit(models, data))


def brute_zip(c, count, repeat, within):
    """The greedy joins, everything looked at anew at every step."""
    total = len(c)
    size = total // count
    sims = {(i, j): float(c[i, j]) + (1e-4 if i % size == j % size else 0) for i in range(total) for j in range(i)}
    parts = {i: [i] for i in range(total)}
    origin = {i: {i // size} for i in range(total)}
    budget = [int(within * (total - size) / count + 1e-9)] * count
    while len(parts) > size:
        allowed = {
            p: s for p, s in sims.items()
            if not (len(origin[p[0]] | origin[p[1]]) == 1 and budget[min(origin[p[0]])] <= 0)
        }  # fmt: skip
        j, i = max(allowed, key=allowed.get)
        if len(origin[i] | origin[j]) == 1:
            budget[min(origin[i])] -= 1
        parts[i] += parts.pop(j)
        origin[i] |= origin.pop(j)
        for k in parts:
            if k != i:
                low = min(sims[max(i, k), min(i, k)], sims[max(j, k), min(j, k)])
                sims[max(i, k), min(i, k)] = repeat * low
        sims = {p: s for p, s in sims.items() if j not in p}
    return {frozenset(p) for p in parts.values()}


@pytest.mark.parametrize(("count", "repeat", "within"), [(2, 0.3, 0.25), (2, 1.0, 1.0), (3, 0.5, 0.0), (4, 0.3, 0.5)])
def test_greedy_joins_against_brute_force(count, repeat, within):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(50, 6 * count, generator=generator, dtype=torch.float64)
    x[:, 6:12] += 1.5 * x[:, :6].roll(1, 1)  # partners under another index
    c = torch.corrcoef(x.T)
    clusters = zipped(c, count, repeat, within)
    found = {frozenset(torch.nonzero(clusters == n).flatten().tolist()) for n in range(6)}
    assert found == brute_zip(c, count, repeat, within)


def test_units_of_one_model_may_be_joined():
    x = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = torch.cat([x[:, :2], x[:, :1]], 1)  # its units 0 and 2 are one
    second = torch.cat([x[:, 1:2], x[:, :1], y], 1)  # has something of its own
    clusters = zipped(torch.corrcoef(torch.cat([first, second], 1).T), 2, 1.0, 1.0).tolist()
    assert clusters[0] == clusters[2] == clusters[4] and clusters[1] == clusters[3]
    assert clusters.count(clusters[5]) == 1
    x[:, 2] = x[:, 0]  # and now a model that could be joined in itself alone
    strangers = torch.cat([x, torch.randn(200, 3, dtype=torch.float64)], 1)
    assert zipped(torch.corrcoef(strangers.T), 2, 0.3, 1.0)[[0, 2]].unique().numel() == 1
    across = zipped(torch.corrcoef(strangers.T), 2, 0.3, 0.0)
    for cluster in range(3):
        models = set((torch.nonzero(across == cluster).flatten() // 3).tolist())
        assert models == {0, 1} or (across == cluster).sum() == 1


def test_merging_and_unmerging():
    clusters = torch.tensor([0, 1, 1, 0, 2, 2])
    merge, unmerge = matrices(clusters, 2)
    assert merge.shape == unmerge.shape == (2, 3, 3)
    together = torch.cat(list(merge), 1)
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    torch.testing.assert_close(sum(m @ u for m, u in zip(merge, unmerge, strict=True)), torch.eye(3))
    assert permutations(torch.corrcoef(torch.randn(50, 3).repeat(1, 2).T), 2).tolist() == [0, 1, 2, 0, 1, 2]


def test_units_that_never_move_are_like_nothing():
    x = torch.randn(40, 3, dtype=torch.float64)
    x[:, 1] = 4.0
    c = correlation(x.sum(0), x.T @ x, 40)
    assert c.isfinite().all() and c[1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(c[0, 2], torch.corrcoef(x.T)[0, 2])


class Normed(ToyBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)


def test_statistics_are_estimated_again():
    models, data = make(rows=40)
    data.model.backbone = Normed().eval()
    base = body(data.model)
    models = Models.in_memory({t: {n: x.clone() for n, x in base.items()} for t in ("a", "b")}, base)
    merged = ZipIt(batch_size=40).fit(models, data)
    assert merged.report["statistics"] == 1
    inputs = [data.model.backbone.first(data.unlabelled[t].inputs["numeric"]) for t in ("a", "b")]
    mean = merged.module.shared["backbone.norm.running_mean"]
    torch.testing.assert_close(mean, torch.cat(inputs).mean(0).detach(), rtol=1e-4, atol=1e-4)
    variance = merged.module.shared["backbone.norm.running_var"]
    expected = sum(x.var(0) for x in inputs).detach() / 2
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=1e-4)
    still = ZipIt(statistics=False).fit(models, data)
    torch.testing.assert_close(still.module.shared["backbone.norm.running_mean"], torch.zeros(8))


def test_a_backbone_without_units_is_refused():
    _, data = make()
    data.model.backbone.norm = nn.GroupNorm(2, 8)
    data.model.backbone.second = nn.GroupNorm(2, 8)
    data.model.backbone.spec.dim = 8
    for head in data.model.heads.values():
        head.out = nn.Linear(8, head.out.out_features)
    base = body(data.model)
    with pytest.raises(UserError, match="no units"):
        ZipIt().fit(Models.in_memory({"a": base, "b": base}, base), data)
