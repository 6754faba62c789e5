"""CAT merging: trims against brute force, and the whole against task arithmetic."""

from __future__ import annotations

import pytest
import torch

from runner.merging.with_data.cat import Cat, trim_matrices, trim_vectors
from runner.merging.with_data.common import base_of, experts_of, vectors_of
from tests.merging.toy import make


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_other_trim_of_that_size_removes_more():
    taus, xs = [random(6, 4, seed=s) for s in range(3)], [random(20, 6, seed=10 + s) for s in range(3)]
    balance = 0.7
    found = trim_matrices(taus, [x.T @ x for x in xs], 1, balance)

    def left(i, basis):
        kept = taus[i] - taus[i] @ basis @ basis.T
        conflict = sum(float((xs[k] @ kept).square().sum()) for k in range(3) if k != i)
        return conflict + balance * float((xs[i] @ (taus[i] - kept)).square().sum())

    for i in range(3):
        removed = taus[i] - found[i]
        assert torch.linalg.matrix_rank(removed) == 1
        basis = torch.linalg.svd(removed).Vh[:1].T
        torch.testing.assert_close(taus[i] @ basis @ basis.T, removed)
        others = (torch.nn.functional.normalize(random(4, 1, seed=100 + s), dim=0) for s in range(200))
        assert left(i, basis) <= min(left(i, other) for other in others) + 1e-9


def test_a_direction_that_others_need_goes_and_one_of_its_own_stays():
    tau = torch.eye(2, dtype=torch.float64)  # output 0 reads input 0, output 1 reads input 1
    mine, theirs = torch.diag(torch.tensor([0.0, 1.0])).double(), torch.diag(torch.tensor([1.0, 0.0])).double()
    trimmed, _ = trim_matrices([tau, tau], [mine, theirs], 2, 1.0)
    torch.testing.assert_close(trimmed, torch.diag(torch.tensor([0.0, 1.0])).double())
    whole, _ = trim_matrices([tau, tau], [mine, theirs], 0, 1.0)
    torch.testing.assert_close(whole, tau)


def test_vectors_lose_the_entries_that_are_others():
    taus = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0])]
    squares = [torch.tensor([0.0, 1.0, 9.0]).double(), torch.tensor([1.0, 2.0, 1.0]).double()]
    first, second = trim_vectors(taus, squares, 3, 1.0)  # worth: 1, 4, -72 and -1, -1, 8
    assert first.tolist() == [0.0, 0.0, 3.0] and second.tolist() == [1.0, 1.0, 0.0]
    first, _ = trim_vectors(taus, squares, 1, 1.0)
    assert first.tolist() == [1.0, 0.0, 3.0]


def test_without_trimming_it_is_task_arithmetic():
    models, data = make()
    merged = Cat(directions=0, scale=0.4).fit(models, data)
    base, vectors = base_of(models), vectors_of(models)
    for name, tensor in merged.tensors.items():
        torch.testing.assert_close(tensor, base[name] + 0.4 * sum(v[name] for v in vectors.values()))
    assert merged.report["trimmed"] == 0.0


def test_it_trims_linear_layers_norms_and_biases():
    models, data = make()
    base, vectors = base_of(models), vectors_of(models)
    merged = Cat(directions=2, balance=0.1, scale=1.0).fit(models, data)
    assert 0 < merged.report["trimmed"] < 1
    for name in ("backbone.first.weight", "backbone.first.bias", "backbone.norm.weight", "backbone.second.weight"):
        plain = base[name] + sum(v[name] for v in vectors.values())
        assert not torch.allclose(merged.tensors[name], plain), name


def test_merged_features_are_disturbed_less():
    """Task k's features under θ_k + τ'_i are nearer to the expert's than under θ_k + τ_i."""
    models, data = make()
    vectors = vectors_of(models)
    trimmed = Cat(directions=3, balance=0.5).trim(vectors, experts_of(models), data)
    base, group = base_of(models), data.unlabelled["a"]
    with torch.no_grad():
        want, *found = (
            data.features({n: base[n] + vectors["a"][n] + other[n] for n in base}, group, "a")
            for other in ({n: torch.zeros(()) for n in base}, vectors["b"], trimmed["b"])
        )
    assert float((found[1] - want).norm()) < 0.6 * float((found[0] - want).norm())


@pytest.mark.parametrize("balance", [0.0, 5.0])
def test_one_expert_alone_has_no_conflicts(balance):
    models, data = make(tasks={"a": 3})
    merged = Cat(scale=1.0, balance=balance).fit(models, data)
    assert merged.report["trimmed"] == pytest.approx(0.0, abs=1e-12)
