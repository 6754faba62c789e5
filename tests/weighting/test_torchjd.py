"""Against TorchJD, where it is installed (`pip install --no-deps torchjd quadprog qpsolvers`)."""

from __future__ import annotations

import pytest
import torch

from runner.weighting.aligned_mtl import AlignedMTL
from runner.weighting.cagrad import CAGrad
from runner.weighting.config import ConFIG
from runner.weighting.dualproj import DualProj
from runner.weighting.fairgrad import fair_weights
from runner.weighting.gradvac import GradVac
from runner.weighting.imtl_g import IMTLG
from runner.weighting.mgda import MGDA
from runner.weighting.nash_mtl import NashMTL
from runner.weighting.pcgrad import project_conflicts
from runner.weighting.upgrad import UPGrad
from tests.weighting.grams import RANDOM, gram, tasks

theirs = pytest.importorskip("torchjd.aggregation", reason="needs torchjd")
NAMES = [n for n in RANDOM if n.endswith("-0")]


@pytest.fixture(params=NAMES)
def grads(request) -> torch.Tensor:
    return RANDOM[request.param]


def ours(method: type, grads: torch.Tensor, **options: object) -> torch.Tensor:
    made = method(tasks(len(grads)), **options)
    matrix = gram(grads)
    weights = made.solve(matrix, torch.ones(len(grads), dtype=torch.float64), torch.arange(len(grads)))
    return made.clip(weights, matrix) @ grads


def made(name: str, *args: object, **options: object) -> torch.nn.Module:
    try:
        return getattr(theirs, name)(*args, **options)
    except ImportError as error:
        pytest.skip(f"torchjd's {name} needs a solver: {error}")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.norm()))


@pytest.mark.parametrize("mode", ["min", "rmse"])  # of an even number, their median is the lower of the middle two
def test_aligned_mtl(grads, mode):
    close(ours(AlignedMTL, grads, scale_mode=mode) / len(grads), made("AlignedMTL", scale_mode=mode)(grads))


def test_config(grads):
    close(ours(ConFIG, grads), made("ConFIG")(grads))


def test_imtl_g(grads):
    close(ours(IMTLG, grads), made("IMTLG")(grads))


def test_upgrad(grads):
    close(ours(UPGrad, grads), made("UPGrad")(grads))


def test_dualproj(grads):
    close(ours(DualProj, grads), made("DualProj")(grads))


def test_mgda_is_at_least_as_short_as_their_approximation(grads):
    """They stop Frank and Wolfe's iteration at a tolerance; here the minimum is exact."""
    exact, approximate = ours(MGDA, grads), made("MGDA", epsilon=1e-8, max_iters=20000)(grads)
    assert exact.norm() <= approximate.norm() * (1 + 1e-9)
    close(approximate, exact, 0.02)


def test_fairgrad(grads):
    """They have neither clipping nor other scales; their solver stops at a relative 1e-8 of the cost."""
    close(fair_weights(gram(grads), 2.0) @ grads, made("FairGrad", alpha=2.0)(grads), 1e-3)


def test_pcgrad(grads):
    torch.manual_seed(3)
    expected = made("PCGrad")(grads)
    torch.manual_seed(3)
    orders = [torch.randperm(len(grads)).tolist() for _ in grads]
    close(project_conflicts(gram(grads), orders).sum(0) @ grads, expected)


def test_gradvac_over_several_steps(grads):
    torch.manual_seed(3)
    method = made("GradVac", beta=0.4)
    expected = [method(grads * (1 + n)) for n in range(3)]
    torch.manual_seed(3)
    mine = GradVac(tasks(len(grads)), beta=0.4)

    def permutation(n: int, calls: list[int] = []) -> list[int]:  # noqa: B006
        i = len(calls) % n
        calls.append(i)
        return [int(j) + int(j >= i) for j in torch.randperm(n - 1)] + [i]

    mine.random.permutation = permutation
    for n, want in enumerate(expected):
        got = mine.solve(gram(grads * (1 + n)), torch.ones(len(grads)), torch.arange(len(grads)))
        close(got @ (grads * (1 + n)), want, 1e-5)


def test_cagrad(grads):
    """They do not rescale; one task is theirs times 1 + c."""
    if len(grads) > 1:
        close(ours(CAGrad, grads, c=0.4, rescale=0), made("CAGrad", c=0.4)(grads), 1e-3)


def test_nash_mtl(grads):
    """They linearise; both clip at 1. Their result depends on what they saw before, so each sees one matrix."""
    expected = made("NashMTL", n_tasks=len(grads))(grads)
    close(ours(NashMTL, grads), expected, 5e-3)
