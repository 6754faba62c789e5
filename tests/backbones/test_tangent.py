"""The tangent space of a backbone, against finite differences and its own definition."""

from __future__ import annotations

import torch

from runner.backbones.mlp import MLP
from runner.backbones.resnet import ResNet
from runner.backbones.tangent import Tangent
from runner.specs import InputSpec

TABLE = InputSpec("table", num_numeric=4, cardinalities=(3,))


def table(rows: int = 5):
    torch.manual_seed(1)
    return {"numeric": torch.randn(rows, 4), "categorical": torch.randint(0, 3, (rows, 1))}


def moved(tangent: Tangent, scale: float, seed: int = 0) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in tangent.point.named_parameters():
            p.copy_(tangent.origin.get(name) + scale * torch.randn_like(p))


def test_at_its_origin_it_is_the_backbone():
    inner = MLP(TABLE, size="tiny").eval()
    x = table()
    expected = inner(x).pooled.detach()
    assert torch.allclose(Tangent(inner)(x).pooled, expected, atol=1e-6)


def test_it_is_linear_in_the_parameters_and_tangent_to_the_backbone():
    tangent = Tangent(MLP(TABLE, size="tiny")).eval()
    x = table()
    moved(tangent, 0.0)
    start = tangent(x).pooled.detach()
    moved(tangent, 1.0)
    whole = tangent(x).pooled.detach() - start
    moved(tangent, 0.5)
    assert torch.allclose(tangent(x).pooled.detach() - start, whole / 2, atol=1e-5)
    moved(tangent, 1e-3)
    true = tangent.point(x).pooled.detach() - start
    near = torch.isclose(true / 1e-3, whole, rtol=0.1, atol=0.05)
    assert near.float().mean() > 0.95  # but where a ReLU has its kink in between


def test_outputs_of_summed_task_vectors_are_summed():
    tangent = Tangent(MLP(TABLE, size="tiny")).eval()
    x, origin = table(), {n: tangent.origin.get(n).clone() for n, _ in tangent.point.named_parameters()}
    moved(tangent, 0.0)
    start, changes, taus = tangent(x).pooled.detach(), [], []
    for seed in (1, 2):
        moved(tangent, 0.7, seed)
        changes.append(tangent(x).pooled.detach() - start)
        taus.append({n: p.detach() - origin[n] for n, p in tangent.point.named_parameters()})
    with torch.no_grad():
        for n, p in tangent.point.named_parameters():
            p.copy_(origin[n] + taus[0][n] + taus[1][n])
    assert torch.allclose(tangent(x).pooled - start, changes[0] + changes[1], atol=1e-5)


def test_gradients_are_those_at_the_origin_wherever_the_parameters_are():
    tangent = Tangent(MLP(TABLE, size="tiny")).train()
    x = table()

    def gradient() -> list[torch.Tensor]:
        return [g.clone() for g in torch.autograd.grad(tangent(x).pooled.sum(), list(tangent.point.parameters()))]

    moved(tangent, 0.0)
    here = gradient()
    moved(tangent, 1.0)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(here, gradient(), strict=True))


def test_convolutions_with_group_norm_and_pyramids_have_a_tangent_space():
    inner = ResNet(InputSpec("image", size=(32, 32)), size="tiny", norm="group", stem_pool=False)
    tangent = Tangent(inner)
    tangent.restrict(["dense", "pooled"])
    features = tangent({"pixels": torch.rand(2, 3, 32, 32)})
    assert len(features.pyramid) == 4 and features.pooled.shape == (2, 128) and features.size == (32, 32)
    features.pooled.sum().backward()
    assert all(p.grad is not None for p in tangent.point.parameters())


def test_weights_put_in_by_functional_call_move_it_as_its_own_do():
    tangent = Tangent(MLP(TABLE, size="tiny")).eval()
    x = table()
    start = tangent(x).pooled.detach()
    inside = {f"point.{n}": p.detach() + 0.5 for n, p in tangent.point.named_parameters()}
    found = torch.func.functional_call(tangent, inside, (x,)).pooled
    with torch.no_grad():
        for p in tangent.point.parameters():
            p.add_(0.5)
    assert torch.allclose(found, tangent(x).pooled, atol=1e-5) and not torch.allclose(found, start)
