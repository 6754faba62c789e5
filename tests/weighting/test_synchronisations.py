"""Where a step makes the host wait for a device: on `meta`, whose tensors have no values to look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from runner.config.build import build
from runner.config.paths import config_root
from runner.weighting import (
    base,
    buffer,
    checks,
    cross,
    engine,
    graddrop,
    gradvac,
    imtl,
    lockstep,
    moco,
    modo,
    representation,
    sdmgrad,
    tracked,
)  # fmt: skip
from runner.weighting.engine import Engine
from runner.weighting.reach import find_reach
from runner.weighting.step import identity
from runner.weighting.tracked import TrackedWeighting

OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path(config_root()).glob("weighting/*.yaml"))}
GRADIENT = {name: config for name, config in OPTIONS.items() if "heads" in config or name == "graddrop"}
CASES = GRADIENT | {
    f"{name}-{value}": config | {key: value}
    for name, config in GRADIENT.items()
    for key, value in (("mode", "representation"), ("mode", "gram"), ("every", 2))
    if key in config
}
KEPT = {"gradvac": 1, "imtl": 1, "moco": 2, "modo": 3, "sdmgrad": 3}
"""Waits for what a method keeps on the device and needs in its solve."""
USES = [base, buffer, checks, cross, engine, gradvac, imtl, lockstep, moco, modo, representation, sdmgrad, tracked]


class Net(nn.Module):
    representation = "trunk"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in "abc"})

    def forward(self, x):
        z = self.trunk(x)
        return {name: head(z) for name, head in self.heads.items()}


def test_no_method_is_missing():
    assert {"mgda", "db_mtl", "graddrop", "gradnorm", "modo", "nash_mtl", "excess_mtl"} <= set(GRADIENT)


@pytest.mark.parametrize("skippable", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_in_named_places_only(case, skippable, monkeypatch):
    """Anything else that looks at a tensor of the device (`item`, `tolist`, a branch, a copy to the CPU) raises."""
    waits = []

    def given(tensor):
        if tensor.device.type == "meta":
            waits.append(tuple(tensor.shape))
            values = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]
            return (values @ values.T if square else values + 0.5).to(tensor.dtype)
        return tensor

    for module in USES:
        monkeypatch.setattr(module, "to_host", given)
    monkeypatch.setattr(graddrop, "uniform_draws", lambda seed, device: lambda n: torch.zeros(n, device=device))
    device = torch.device("meta")
    tasks = {name: SimpleNamespace(loss_kind="regression") for name in "abc"}
    weighting = build(CASES[case], tasks).to(device)
    net, pieces = Net().to(device), sum(weighting.parts)
    x = torch.zeros(8, 4, device=device)
    parameters = list(net.parameters())
    made = Engine(
        weighting, parameters, find_reach({k: [v] for k, v in net(x).items()}, parameters), micro_batches=pieces,
        reduce=identity, device=device, model=net, skippable=skippable,
    )  # fmt: skip
    for number in range(2):
        waits.clear()
        made.begin(torch.full((pieces, 3), 8.0, device=device), number, 1)
        for _ in range(pieces):
            made.backward({k: v.square().sum() for k, v in net(x).items()})
        made.finish()
        # the labels, the losses, the inner products, the coefficients for the log
        allowed = 4 + KEPT.get(case.partition("-")[0], 0)
        allowed += skippable and isinstance(weighting, TrackedWeighting)  # whether the averages may move
        assert len(waits) <= allowed, waits
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in parameters)


def test_it_would_be_noticed():
    with pytest.raises(Exception, match="meta"):
        torch.zeros(3, device="meta").sum().item()
    with pytest.raises(Exception, match="meta"):
        torch.zeros(3, device="meta").cpu()
    with pytest.raises(Exception, match="meta"):
        bool(torch.zeros((), device="meta") > 0)
