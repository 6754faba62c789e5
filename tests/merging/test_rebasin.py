"""Weight matching: permuted models come back, groups are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from runner.errors import UserError
from runner.merging import worker
from runner.merging.memory import merge_in_memory
from runner.merging.rules.rebasin import ReBasin, align, chain_groups
from runner.merging.sources import Models, StateDict
from tests.merging.models import write


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 4))


def permuted(net: nn.Sequential, seed: int) -> dict[str, torch.Tensor]:
    """The same function with its hidden units in another order."""
    tensors = {n: t.detach().clone() for n, t in net.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for group in chain_groups(StateDict(tensors), list(tensors)):
        size = next(iter(tensors[n].shape[a] for n, a in group.items()))
        order = torch.randperm(size, generator=generator)
        for name, axis in group.items():
            tensors[name] = tensors[name].index_select(axis, order)
    return tensors


def test_the_groups_of_a_chain():
    net = mlp(0)
    assert chain_groups(StateDict(net.state_dict()), list(net.state_dict())) == [
        {"0.weight": 0, "2.weight": 1, "0.bias": 0},
        {"2.weight": 0, "5.weight": 1, "2.bias": 0, "3.weight": 0, "3.bias": 0},
    ]


def test_permuting_leaves_the_function_alone():
    net, x = mlp(0), torch.randn(5, 6)
    before = net(x)
    net.load_state_dict(permuted(net, 3))
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_permuted_copy_is_put_in_order_again(noise):
    net = mlp(0)
    other = permuted(net, 3)
    moved = {n: t + noise * torch.randn(t.shape) for n, t in other.items()}
    merged = merge_in_memory(ReBasin(), Models.in_memory({"a": net.state_dict(), "b": moved})).tensors
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6 + 4 * noise)
    plain = (net.state_dict()["0.weight"] + other["0.weight"]) / 2
    assert float((plain - net.state_dict()["0.weight"]).abs().max()) > 0.1  # averaging alone would not do


def test_alignment_never_lowers_the_inner_product():
    first, second = ({n: t.detach() for n, t in mlp(s).state_dict().items()} for s in (0, 1))
    groups = chain_groups(StateDict(first), list(first))

    def product(model):
        return float(sum((first[n] * model[n]).sum() for n in first))

    aligned = dict(second)
    align(first, aligned, groups, 100, 0)
    assert product(aligned) > product(second)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([{"9.weight": 0}], "'9.weight', which a lacks"),
        ([{"0.bias": 1}], "has no axis 1"),
        ([{"0.weight": 0, "2.weight": 0}], "lengths \\[9, 12\\]"),
    ],
)
def test_wrong_groups(groups, words):
    with pytest.raises(UserError, match=words):
        merge_in_memory(ReBasin(groups=groups), Models.in_memory({"a": mlp(0).state_dict(), "b": mlp(1).state_dict()}))


def test_no_chain():
    shapes = {"a.weight": (3, 4), "b.weight": (5, 6)}
    models = {k: {n: torch.randn(s) for n, s in shapes.items()} for k in "ab"}
    with pytest.raises(UserError, match="no plain chain"):
        merge_in_memory(ReBasin(), Models.in_memory(models))


def test_from_disk_to_disk():
    net = mlp(0)
    write(Path("a"), {n: t.clone() for n, t in net.state_dict().items()})
    write(Path("b"), permuted(net, 1))
    strategy = {"_target_": "runner.merging.rules.rebasin.ReBasin"}
    plain = {"names": None, "include": [], "exclude": [], "dtype": "base", "embed": "error", "batchnorm": "keep"}
    plain |= {"shard_size": 5.0, "threads": 1, "memory": 0.5, "plugins": [], "base": None}
    models = [str(Path(n).absolute()) for n in "ab"]
    for dry in (True, False):
        worker.run(plain | {"merge": strategy, "models": models, "out": str(Path("out").absolute())}, dry=dry)
    for name, tensor in load_file("out/model.safetensors").items():
        torch.testing.assert_close(tensor, net.state_dict()[name])
