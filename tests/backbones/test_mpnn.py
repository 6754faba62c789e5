from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backbones.samples import backbone, example, option


@pytest.fixture
def net():
    return backbone(option("backbone", "mpnn"), size="tiny").eval()


def by_hand(net, atoms: Tensor, positions: Tensor, bonds: Tensor) -> Tensor:
    """One molecule, pair by pair, with the D × D matrix of every pair written out."""
    h = net.embedding(atoms)
    width = h.shape[1]
    parts = net.matrices.weight.view(width, -1, width)  # out, hidden + 1, in
    for _ in range(3):
        messages = []
        for i in range(len(atoms)):
            total = torch.zeros(width)
            for j in range(len(atoms)):
                if i != j:
                    kind = torch.zeros(4)
                    if bonds[i, j]:
                        kind[bonds[i, j] - 1] = 1
                    edge = torch.cat([kind, (positions[i] - positions[j]).norm()[None]])
                    hidden = torch.cat([net.edges(edge), torch.ones(1)])
                    total = total + torch.einsum("okd,k->od", parts, hidden) @ h[j]
            messages.append(total / (len(atoms) - 1))
        h = net.update(F.relu(torch.stack(messages) + net.own(h)), h)
    query, memory, found = torch.zeros(1, width), torch.zeros(1, width), torch.zeros(1, 2 * width)
    for _ in range(3):
        query, memory = net.readout(found, (query, memory))
        share = torch.softmax(h @ query[0], 0)
        found = torch.cat([query, (share[:, None] * h).sum(0)[None]], 1)
    return F.relu(net.out(found))[0]


def test_against_loops(net) -> None:
    inputs = example("graph", batch=3)
    pooled = net(inputs).pooled
    for b, count in enumerate((6, 5, 4)):
        alone = by_hand(net, *(inputs["atoms"][b, :count], inputs["positions"][b, :count], inputs["bonds"][b]))
        torch.testing.assert_close(pooled[b], alone, atol=1e-5, rtol=1e-4)


def test_padding_order_and_place_do_not_matter(net) -> None:
    inputs = example("graph")
    expected = net(inputs).pooled
    wider = {
        "atoms": F.pad(inputs["atoms"], (0, 3)),
        "positions": F.pad(inputs["positions"], (0, 0, 0, 3)),
        "bonds": F.pad(inputs["bonds"], (0, 3, 0, 3)),
    }
    torch.testing.assert_close(net(wider).pooled, expected, atol=1e-6, rtol=1e-5)
    order = torch.tensor([3, 1, 4, 0, 5, 2])
    moved = {
        "atoms": inputs["atoms"][:, order],
        "positions": inputs["positions"][:, order],
        "bonds": inputs["bonds"][:, order][:, :, order],
    }
    torch.testing.assert_close(net(moved).pooled, expected, atol=1e-5, rtol=1e-4)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turned = inputs | {"positions": inputs["positions"] @ turn.T + 5}
    torch.testing.assert_close(net(turned).pooled, expected, atol=1e-5, rtol=1e-4)


def test_bonds_and_distances_matter(net) -> None:
    inputs = example("graph")
    expected = net(inputs).pooled
    assert not torch.allclose(net(inputs | {"bonds": 0 * inputs["bonds"]}).pooled, expected)
    assert not torch.allclose(net(inputs | {"positions": 2 * inputs["positions"]}).pooled, expected)


def test_an_atom_alone() -> None:
    net = backbone(option("backbone", "mpnn"), size="tiny")
    one = {"atoms": torch.tensor([[8]]), "positions": torch.zeros(1, 1, 3), "bonds": torch.zeros(1, 1, 1).long()}
    pooled = net(one).pooled
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_the_published_size() -> None:
    """Nash-MTL's network: edge network 5 → 128 → 64 · 64, GRU, set2set and linear layer of width 64."""
    net = backbone(option("backbone", "mpnn"))
    edge = 5 * 128 + 128 + 128 * 64 * 64 + 64 * 64
    conv = 64 * 64 + 64
    gru = 2 * (3 * 64 * 64 + 3 * 64)
    set2set = 4 * 64 * (128 + 64) + 2 * 4 * 64
    linear = 128 * 64 + 64
    first = 119 * 64 + 64 * 64 + 64  # here the element; there 11 numbers of RDKit
    assert sum(p.numel() for p in net.parameters()) == first + edge + conv + gru + set2set + linear
