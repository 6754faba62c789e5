"""IMTL-G and IMTL."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.imtl import IMTL
from runner.weighting.imtl_g import IMTLG, impartial
from tests.weighting.grams import ALL, RANDOM, gram, tasks


@pytest.mark.parametrize("name", RANDOM)
def test_projections_on_all_unit_gradients_are_equal(name):
    grads = RANDOM[name]
    alpha = impartial(gram(grads))
    assert alpha.sum() == pytest.approx(1.0)
    projections = (grads / grads.norm(dim=1)[:, None]) @ (alpha @ grads)
    torch.testing.assert_close(projections, projections.mean().expand(len(grads)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["K2-P5-0", "K3-P3-0", "K5-P8-0"])
def test_is_the_papers_closed_form(name):
    """Eq. 6: α_{2:T} = g_1 Uᵀ (D Uᵀ)⁻¹ with D = g_1 − g_t, U = u_1 − u_t."""
    g = RANDOM[name]
    u = g / g.norm(dim=1)[:, None]
    D, U = g[0] - g[1:], u[0] - u[1:]
    rest = g[0] @ U.T @ torch.linalg.inv(D @ U.T)
    torch.testing.assert_close(impartial(gram(g)), torch.cat([1 - rest.sum()[None], rest]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_is_finite_everywhere(name):
    assert impartial(gram(ALL[name])).isfinite().all()


def test_opposite_gradients_cancel_and_parallel_ones_keep_their_direction():
    opposite = torch.tensor([[1.0, 0], [-3.0, 0]], dtype=torch.float64)
    torch.testing.assert_close(impartial(gram(opposite)) @ opposite, torch.zeros(2, dtype=torch.float64))
    parallel = torch.tensor([[1.0, 1], [3.0, 3]], dtype=torch.float64)
    # β = (½, ½) on unit gradients: α ∝ (1, ⅓)
    torch.testing.assert_close(impartial(gram(parallel)), torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_scale_multiplies():
    matrix = gram(RANDOM["K5-P8-0"])
    plain, _ = IMTLG(tasks(5)).coefficients(matrix, torch.ones(5), torch.arange(5))
    got, _ = IMTLG(tasks(5), scale="tasks").coefficients(matrix, torch.ones(5), torch.arange(5))
    torch.testing.assert_close(got, plain * 5 / plain.abs().sum())


def test_imtl_is_imtl_g_of_the_scaled_losses_and_learns_by_imtl_l():
    grads = RANDOM["K3-P3-0"]
    losses = torch.tensor([0.5, 2.0, 7.0])
    method = IMTL(tasks(3))
    method.log_scale.data = torch.tensor([0.3, -1.0, 2.0])
    factors = method.log_scale.detach().exp()
    shared, heads = method.coefficients(gram(grads), losses, torch.arange(3))
    scaled = grads * factors[:, None]
    torch.testing.assert_close(shared.double() @ grads, impartial(gram(scaled)) @ scaled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads, factors)
    got = method.log_scale.grad
    s = method.log_scale.detach().clone().requires_grad_()
    (s.exp() * losses - s).sum().backward()
    torch.testing.assert_close(got, s.grad)


def test_imtl_leaves_the_scale_of_an_absent_task_alone():
    method = IMTL(tasks(3))
    method.solve(gram(RANDOM["K2-P5-0"]), torch.tensor([0.5, 2.0]), torch.tensor([0, 2]))
    torch.testing.assert_close(method.log_scale.grad, torch.tensor([-0.5, 0.0, 1.0]))
    assert "lr" not in method.parameter_groups()[0] and IMTL(tasks(1), lr=0.1).parameter_groups()[0]["lr"] == 0.1
