"""What every option of configs/optimizer keeps to."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from runner.config.build import build
from runner.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "optimizer"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config(name: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changes


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()


def test_expected_options() -> None:
    assert {"adamw", "adam", "sgd", "mt_adamw"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_complete(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments[0].endswith(".")
    assert [c.split(":")[0] for c in comments[1:]] in (["# cost", "# run"], ["# paper", "# cost", "# run"])
    assert all("  # " in line for line in lines if not line.startswith(("#", "_target_")))
    module, _, attribute = config(name)["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
    assert set(config(name)) - {"_target_"} == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("name", NAMES)
def test_learns(name: str) -> None:
    net = model()
    optimizer = build(config(name, lr=0.01), net)
    x = torch.randn(64, 3)
    before = (net(x) - x[:, :2]).square().mean().item()
    train(net, optimizer, 200)
    assert (net(x) - x[:, :2]).square().mean().item() < 0.5 * before


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_is_in_exactly_one_group(name: str) -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = build(config(name, rules={"3.*": {"lr_scale": 10}}), net)
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", [name for name in NAMES if "kernel" in config(name)])
@pytest.mark.parametrize("kernel", ["auto", "fused", "foreach", "loop"])
def test_kernels_agree(name: str, kernel: str) -> None:
    net, reference = model(), model()
    train(net, build(config(name, kernel=kernel), net), 20)
    train(reference, build(config(name, kernel="loop"), reference), 20)
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    groups = build(config(name, kernel=kernel), net).param_groups
    assert all(bool(g["fused"]) == (kernel in ("auto", "fused")) for g in groups)
    assert all(bool(g["foreach"]) == (kernel == "foreach") for g in groups)


@pytest.mark.parametrize("name", NAMES)
def test_resumes_bit_for_bit(name: str) -> None:
    whole = model()
    train(whole, build(config(name), whole), 10)
    first = model()
    optimizer = build(config(name), first)
    train(first, optimizer, 6)
    second = model(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = build(config(name), second)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, 4, start=6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_groups_can_join(name: str) -> None:
    """A learnable weighting brings parameters of its own; what they do not set is the optimizer's."""
    net, extra = model(), nn.Parameter(torch.ones(3))
    optimizer = build(config(name, lr=0.5), net)
    optimizer.add_param_group({"params": [extra], "weight_decay": 0.0})
    assert optimizer.param_groups[-1]["lr"] == 0.5
    extra.grad = torch.ones(3)
    optimizer.step()
    assert (extra < 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_train(name: str) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        build(config(name), model().requires_grad_(False))
