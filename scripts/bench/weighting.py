"""What the weightings cost: solvers alone, and a whole step against the least it can take.

    python scripts/bench/weighting.py [--tasks 3 10] [--nets conv mlp vit] [--methods mgda mgda:gram mgda_ub famo]
        [--rounds 7] [--torchjd] [--libmtl] [--no-memory] [--only-solvers] [--only-steps]

A method may be followed by a mode (`mgda:gram`). Methods, the bound, the plain step and peers take turns in one
process, and figures are ratios of medians:

- `x bound`: one forward pass and K barely done backward passes (`autograd.grad` of each loss with respect to all
  parameters, results dropped). Bar of parameter-level methods: 1.15.
- `x plain`: a forward and a backward pass of the sum. Bar of the representation level: 1.15.
- `x equal`: the step of `weighting=equal`. Bars: 1.02 for loss-only methods, 1.5 for famo.
- memory: the peak of a fresh process over that of the plain step, in units of P (shared parameters, float32; Linux).
  Bars: 1.1 K parameter-level, 2 Gram-only, 0.1 representation-level.

Run it with OMP_NUM_THREADS=1 on a machine that is not idle: processor time is measured then.

Solvers: median milliseconds at K = 10 (bar 1) and K = 40 (bar 5). Peers are optional: torchjd, and LibMTL's weightings
(`pip install --no-deps LibMTL`).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from torch import Tensor, nn

from runner.config.build import build
from runner.config.paths import config_root
from runner.weighting.base import GradientWeighting
from runner.weighting.engine import Engine
from runner.weighting.reach import find_reach
from runner.weighting.step import identity


class Net(nn.Module):
    """A shared trunk and one linear head per task."""

    representation = "trunk"

    def __init__(self, trunk: nn.Module, width: int, tasks: list[str]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(width, 4) for task in tasks})

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {task: head(features).square().sum() for task, head in self.heads.items()}


def conv(tasks: list[str]) -> tuple[Net, Tensor]:
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return Net(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 128, tasks), torch.randn(16, 3, 64, 64)


def mlp(tasks: list[str]) -> tuple[Net, Tensor]:
    trunk = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048))
    return Net(trunk, 2048, tasks), torch.randn(64, 512)


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        z = self.before_attention(x_BTD)
        q, k, v = (
            layer(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + self.out(attended)
        return x_BTD + self.mlp(self.before_mlp(x_BTD))


class ViT(nn.Module):
    """Images of 64 x 64 in patches of 8, six blocks of width 192: 2.7 M parameters."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, 3) for _ in range(6)), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.position).mean(1)


def vit(tasks: list[str]) -> tuple[Net, Tensor]:
    return Net(ViT(), 192, tasks), torch.randn(16, 3, 64, 64)


NETS = {"conv": conv, "mlp": mlp, "vit": vit}


METHODS = [
    "mgda", "pcgrad", "nash_mtl", "db_mtl", "mgda:gram", "pcgrad:gram", "mgda_ub", "pcgrad:representation",
    "uncertainty", "dwa", "famo",
]  # fmt: skip


def bound(net: Net, x: Tensor) -> None:
    parameters = list(net.parameters())
    losses = list(net.losses(x).values())
    for n, loss in enumerate(losses):
        torch.autograd.grad(loss, parameters, retain_graph=n + 1 < len(losses), allow_unused=True)


def plain(net: Net, x: Tensor) -> None:
    net.zero_grad(set_to_none=True)
    torch.stack(list(net.losses(x).values())).sum().backward()


def ours(name: str, net: Net, x: Tensor) -> Callable[[], None]:
    tasks = {task: SimpleNamespace(loss_kind="regression") for task in net.heads}
    name, _, mode = name.partition(":")
    config = yaml.safe_load((config_root() / "weighting" / f"{name}.yaml").read_text())
    config |= {"mode": mode} if mode else {}
    parameters = list(net.parameters())
    reach = find_reach({task: [loss] for task, loss in net.losses(x[:2]).items()}, parameters)
    weighting = build(config, tasks)
    engine = Engine(
        weighting, parameters, reach, micro_batches=1, reduce=identity, device=torch.device("cpu"), model=net,
        skippable=False,
    )  # fmt: skip
    counts = torch.full((len(tasks),), float(len(x)))

    def step() -> None:
        engine.begin(counts)
        engine.backward(net.losses(x))
        engine.finish()
        if weighting.wants_second_losses:
            with torch.no_grad():
                again = torch.stack(list(net.losses(x).values())) / len(x)
            weighting.after_update(again, torch.arange(len(tasks)))

    return step


def torchjd(name: str, net: Net, x: Tensor) -> Callable[[], None]:
    from torchjd.aggregation import MGDA, PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = {"mgda": MGDA, "pcgrad": PCGrad}[name]()

    def step() -> None:
        net.zero_grad(set_to_none=True)
        features = net.trunk(x)
        mtl_backward([head(features).square().sum() for head in net.heads.values()], features=features)
        jac_to_grad(net.trunk.parameters(), aggregator)

    return step


def libmtl(name: str, net: Net, x: Tensor) -> Callable[[], None]:
    """The method of LibMTL on the same net, as its trainer calls it."""
    for missing in ("torchvision", "torchvision.models", "torchvision.models.utils"):
        # Its package imports a ResNet that looks for a module which torchvision dropped in 2021; nothing here uses it.
        sys.modules.setdefault(missing, types.ModuleType(missing)).load_state_dict_from_url = None  # type: ignore[attr-defined]
    import LibMTL.weighting as theirs

    class Model(getattr(theirs, {"mgda": "MGDA", "pcgrad": "PCGrad"}[name])):  # type: ignore[misc]
        def get_share_params(self):
            return net.trunk.parameters()

        def zero_grad_share_params(self) -> None:
            net.trunk.zero_grad(set_to_none=False)

    model = Model()
    model.task_num, model.task_name, model.rep_grad, model.device = len(net.heads), list(net.heads), False, x.device
    model.init_param()

    def step() -> None:
        net.zero_grad(set_to_none=False)
        model.backward(torch.stack(list(net.losses(x).values())), mgda_gn="none")

    return step


def median_ms(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    # With one thread the processor's time is the step's, whatever else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(rounds):
        for name, step in steps.items():
            began = clock()
            step()
            times[name].append(1000 * (clock() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def time_steps(options: argparse.Namespace) -> None:
    for net_name in options.nets:
        for number in options.tasks:
            torch.manual_seed(0)
            net, x = NETS[net_name]([f"t{k}" for k in range(number)])
            steps: dict[str, Callable[[], None]] = {"bound": partial(bound, net, x), "plain": partial(plain, net, x)}
            for name in dict.fromkeys(["equal", *options.methods]):
                torch.manual_seed(0)
                own, same = NETS[net_name](list(net.heads))  # modes hook the modules: a net for each
                steps[name] = ours(name, own, same)
            if options.torchjd:
                steps |= {f"torchjd {n}": torchjd(n, net, x) for n in options.methods if n in ("mgda", "pcgrad")}
            if options.libmtl:
                steps |= {f"libmtl {n}": libmtl(n, net, x) for n in options.methods if n in ("mgda", "pcgrad")}
            found = median_ms(steps, options.rounds)
            size = sum(p.numel() for p in net.trunk.parameters())
            base = 0.0 if options.no_memory else peak_mb("plain", net_name, number)
            print(
                f"{net_name} K={number} P={size / 1e6:.1f}M:", *(f"{n} {found[n]:.0f} ms" for n in ("bound", "plain"))
            )
            for name, ms in found.items():
                if name in ("bound", "plain"):
                    continue
                ratios = "   ".join(f"{ms / found[unit]:5.2f} x {unit}" for unit in ("bound", "plain", "equal"))
                memory = ""
                if not options.no_memory and " " not in name:
                    extra = (peak_mb(name, net_name, number) - base) * 2**18
                    memory = f"   {extra / size:6.2f} x P over plain"
                print(f"  {name:22} {ratios}{memory}", flush=True)


def peak_mb(what: str, net_name: str, number: int) -> float:
    """Peak resident memory of a fresh process that takes three such steps."""
    command = [sys.executable, __file__, "--peak", what, net_name, str(number)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(what: str, net_name: str, number: int) -> None:
    torch.manual_seed(0)
    net, x = NETS[net_name]([f"t{k}" for k in range(number)])
    step = (lambda: plain(net, x)) if what == "plain" else ours(what, net, x)
    # The first backward pass with given gradients imports sympy, 35 MB that belong to no step.
    warm = torch.ones(1, requires_grad=True)
    torch.autograd.grad([warm * 2], [warm], [torch.ones(1)])
    for _ in range(3):
        step()
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text().split()
    print(int(status[status.index("VmHWM:") + 1]) / 1024)


def time_solvers(rounds: int) -> None:
    print("solvers, median ms (K = 10, K = 40; bars 1 and 5)")
    for path in sorted((config_root() / "weighting").glob("*.yaml")):
        figures = []
        for number in (10, 40):
            method = build(
                yaml.safe_load(path.read_text()), {f"t{k}": SimpleNamespace(loss_kind="") for k in range(number)}
            )
            if not isinstance(method, GradientWeighting):
                break
            torch.manual_seed(0)
            grams = [g @ g.T for g in torch.randn(5, number, 3 * number, dtype=torch.float64)]
            steps = {
                str(n): lambda g=g, m=method, k=number: m.coefficients(g, torch.ones(k), torch.arange(k))
                for n, g in enumerate(grams)
            }
            figures.append(statistics.median(median_ms(steps, rounds).values()))
        if figures:
            print(f"  {path.stem:12} " + "  ".join(f"{value:5.2f}" for value in figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="*", default=[3, 10])
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torchjd", action="store_true", help="time TorchJD's MGDA and PCGrad too, if it is installed")
    parser.add_argument("--libmtl", action="store_true", help="time LibMTL's MGDA and PCGrad too, if it is installed")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--only-solvers", action="store_true", help="no steps")
    parser.add_argument("--only-steps", action="store_true", help="no solvers")
    parser.add_argument("--peak", nargs=3, metavar=("METHOD", "NET", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak[0], options.peak[1], int(options.peak[2]))
        return
    if not options.only_steps:
        time_solvers(options.rounds)
    if not options.only_solvers:
        time_steps(options)


if __name__ == "__main__":
    main()
