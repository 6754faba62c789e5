"""The modes of the engine against each other and against autograd, on nets with everything that graphs may hold."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from runner.backbones.checkpointing import checkpoint_modules
from runner.config.build import build
from runner.config.paths import config_root
from runner.errors import UserError
from runner.weighting import lockstep
from runner.weighting.base import GradientWeighting
from runner.weighting.engine import Engine
from runner.weighting.gram_sums import linear_gram
from runner.weighting.mgda import MGDA
from runner.weighting.pcgrad import PCGrad
from runner.weighting.reach import find_reach
from runner.weighting.step import NonFiniteLoss, identity

TASKS = {name: SimpleNamespace(loss_kind="regression") for name in "abc"}
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(config_root().glob("weighting/*.yaml"))}
METHODS = [n for n, c in CONFIGS.items() if "mode" in c and isinstance(build(c, TASKS), GradientWeighting)]


class Block(nn.Module):
    """Attention-like: one input to several linear layers, a residual, a parameter outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8, bias=False)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        z = self.norm(x)
        attention = (self.q(z) @ self.k(z).transpose(1, 2)).softmax(-1)
        return x + self.gain * self.out(torch.nn.functional.gelu(attention @ self.v(z)))


class Trunk(nn.Module):
    """Convolutions with activations in place, BatchNorm, tokens, a layer that runs twice, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.twice = nn.Linear(8, 8)
        self.position = nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, x):
        z = self.down(self.stem(x))
        tokens = z.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return {"tokens": self.twice(torch.tanh(self.twice(tokens))), "map": [z]}


class Net(nn.Module):
    representation = "trunk"

    def __init__(self, shared_head: bool = False) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.both = nn.Linear(8, 8) if shared_head else nn.Identity()
        self.heads = nn.ModuleDict({name: nn.Linear(16, 2) for name in TASKS})

    def forward(self, x):
        features = self.trunk(x)
        pooled = torch.cat([self.both(features["tokens"]).mean(1), features["map"][0].mean((2, 3))], 1)
        return {name: head(torch.relu_(pooled.clone())) for name, head in self.heads.items()}


def world(shared_head=False, seed=0):
    torch.manual_seed(seed)
    return Net(shared_head), torch.randn(6, 3, 6, 6), {name: 3 * torch.randn(6, 2) for name in TASKS}


def step(net, weighting, x, targets, names=tuple(TASKS), scale=1.0, micro_batches=1, autocast=False, patterns=None):
    parameters = list(net.parameters())
    net.eval()
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, parameters)
    reach = reach.restrict([n for n, _ in net.named_parameters()], patterns)
    net.train()
    engine = Engine(
        weighting, parameters, reach, micro_batches=micro_batches, reduce=identity, device=torch.device("cpu"),
        loss_scale=lambda: scale, model=net,
    )  # fmt: skip
    engine.begin(torch.tensor([float(len(x)) if k in names else 0.0 for k in TASKS]))
    for rows in torch.arange(len(x)).chunk(micro_batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = net(x[rows])
        engine.backward({k: (found[k].float() - targets[k][rows]).square().sum() for k in names})
    report = engine.finish()
    return report, [None if p.grad is None else p.grad.clone() / scale for p in net.parameters()]


def assert_same(one, other, tolerance=1e-4):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()) + 1e-6)


@pytest.fixture(autouse=True)
def every_cut(monkeypatch):
    """The nets here are so small that no cut would be worth its memory."""
    monkeypatch.setattr(lockstep, "_WORTH", float("inf"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shared_head", [False, True])
def test_gram_mode_is_the_parameter_mode(name, shared_head):
    results = []
    for mode in ("parameters", "gram"):
        net, x, targets = world(shared_head)
        results.append(step(net, build(CONFIGS[name] | {"mode": mode}, TASKS), x, targets, scale=256.0))
    (first, plain), (second, gram) = results
    torch.testing.assert_close(first.cosines, second.cosines, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.grad_norms, second.grad_norms, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.weights, second.weights, rtol=2e-3, atol=1e-4)
    assert_same(gram, plain, 2e-3)


@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("case", ["absent", "checkpointed", "tied", "patterns", "frozen"])
def test_gram_mode_in_every_setting(case, heads):
    results = []
    for mode in ("parameters", "gram"):
        net, x, targets = world(shared_head=True)
        if case == "checkpointed":
            checkpoint_modules(net.trunk.blocks)
        if case == "tied":
            net.trunk.blocks[1].q.weight = net.trunk.blocks[0].k.weight
        if case == "frozen":
            net.trunk.blocks[0].requires_grad_(False)
            net.trunk.stem.requires_grad_(False)
        names = ("a", "c") if case == "absent" else tuple(TASKS)
        patterns = ["trunk.blocks.*", "both.*"] if case == "patterns" else None
        parameters = [p for p in net.parameters() if p.requires_grad]
        net.parameters = lambda ps=parameters, recurse=True: iter(ps)
        results.append(step(net, MGDA(TASKS, mode=mode, heads=heads), x, targets, names, patterns=patterns))
    (first, plain), (second, gram) = results
    torch.testing.assert_close(first.weights, second.weights, rtol=1e-3, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(first.cosines, second.cosines, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert_same(gram, plain, 1e-3)


def test_gram_mode_under_autocast():
    results = []
    for mode in ("parameters", "gram"):
        net, x, targets = world()
        results.append(step(net, PCGrad(TASKS, mode=mode, seed=1), x, targets, autocast=True))
    (first, plain), (second, gram) = results
    torch.testing.assert_close(first.cosines, second.cosines, rtol=0, atol=0.02)
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (gram, plain))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(2, 50, 40), (300, 5, 7), (64, 3, 900)])
def test_linear_gram_is_that_of_the_gradients(rows, inputs, outputs):
    torch.manual_seed(0)
    delta, given = torch.randn(4, rows, outputs), torch.randn(rows, inputs)
    grads = torch.stack([(d.double().T @ given.double()).reshape(-1) for d in delta])
    torch.testing.assert_close(linear_gram(delta, given), grads @ grads.T, rtol=1e-4, atol=1e-4 * float(grads.norm()))


@pytest.mark.parametrize("mode", ["gram", "representation"])
def test_steps_between_solves_and_after_a_broken_one_see_the_whole_graph(mode):
    """The hooks must be silent where the coefficients are known, also when the step before could not be finished."""
    net, x, targets = world()
    method = MGDA(TASKS, mode=mode, every=2)
    net.eval()
    reach = find_reach({k: [v] for k, v in net(x[:1]).items()}, list(net.parameters()))
    engine = Engine(
        method, list(net.parameters()), reach, micro_batches=1, reduce=identity, device=torch.device("cpu"), model=net
    )
    counts = torch.full((3,), float(len(x)))
    for number, factor in enumerate((1.0, 1.0, float("inf"), 1.0)):
        engine.begin(counts, number)
        found = net(x)
        engine.backward({k: ((found[k] - targets[k]) * factor).square().sum() for k in TASKS})
        if factor == 1:
            report = engine.finish()
        else:
            with pytest.raises(NonFiniteLoss):
                engine.finish()
    found = net(x)
    losses = [(found[k] - targets[k]).square().sum() / len(x) for k in TASKS]
    total = sum(w * loss for w, loss in zip(report.weights, losses, strict=True))
    want = torch.autograd.grad(total, list(net.parameters()))
    assert report.cosines.isnan().all(), "a step between two solves"
    assert_same([p.grad for p in net.parameters()], want)


def test_a_step_leaves_no_tensor_to_the_garbage_collector():
    """A cycle of references would keep the activations of a step into the next ones."""
    net, x, targets = world()
    step(net, MGDA(TASKS, mode="gram"), x, targets)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        step(net, MGDA(TASKS, mode="gram"), x, targets)
        net(x)
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not [tensor.shape for tensor in left if tensor.dim() > 1 and len(tensor) == len(x)]


def test_gram_mode_refuses_what_it_cannot_do():
    net, x, targets = world()
    with pytest.raises(UserError, match=r"accumulation=1 and launch.num_processes=1"):
        step(net, MGDA(TASKS, mode="gram"), x, targets, micro_batches=2)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("name", ["mgda", "cagrad", "aligned_mtl", "pcgrad"])
def test_representation_mode_solves_on_the_features(name, heads, micro_batches):
    net, x, targets = world()
    net.trunk.stem[1] = nn.Identity()  # BatchNorm couples the examples of a micro-batch
    keys = CONFIGS[name] | {"heads": heads, "seed": 3} if "seed" in CONFIGS[name] else CONFIGS[name] | {"heads": heads}
    method = build(keys | {"mode": "representation"}, TASKS)
    report, got = step(net, method, x, targets, micro_batches=micro_batches, scale=8.0)
    # by hand: gradients of the features, detached from the trunk
    features = net.trunk(x)
    z = [features["tokens"].detach().requires_grad_(), features["map"][0].detach().requires_grad_()]
    pooled = torch.relu(torch.cat([z[0].mean(1), z[1].mean((2, 3))], 1))
    losses = [(net.heads[k](pooled) - targets[k]).square().sum() / len(x) for k in TASKS]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, z, retain_graph=True)]) for loss in losses]
    matrix = torch.stack(rows).double()
    shared, _ = build(keys, TASKS).coefficients(matrix @ matrix.T, torch.stack(losses).detach(), torch.arange(3))
    torch.testing.assert_close(report.weights, shared, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(report.grad_norms.double(), matrix.norm(dim=1), rtol=1e-4, atol=1e-6)
    found = net(x)
    raw = [(found[k] - targets[k]).square().sum() / len(x) for k in TASKS]
    trunk = list(net.trunk.parameters())
    want = torch.autograd.grad(sum(w * loss for w, loss in zip(shared, raw, strict=True)), trunk, retain_graph=True)
    assert_same(got[: len(trunk)], want, 1e-3)
    for n, k in enumerate(TASKS):
        (want_head,) = torch.autograd.grad(raw[n], net.heads[k].weight, retain_graph=True)
        want_head = want_head * (report.weights[n] if heads == "weighted" else 1.0)
        torch.testing.assert_close(got[len(trunk) + 2 * n], want_head, rtol=1e-3, atol=1e-5)


def test_representation_mode_leaves_an_absent_task_out_and_needs_a_trunk():
    net, x, targets = world()
    report, grads = step(net, MGDA(TASKS, mode="representation"), x, targets, names=("a", "c"))
    assert report.weights[1].isnan() and report.cosines[0, 2].isfinite()
    names = [n for n, _ in net.named_parameters()]
    assert all((g is None) == n.startswith("heads.b") for n, g in zip(names, grads, strict=True))
    with pytest.raises(UserError, match=r"lie outside of 'trunk', such as 'both"):
        step(*(w := world(shared_head=True))[:1], MGDA(TASKS, mode="representation"), *w[1:])


def test_a_checkpointed_trunk_gives_the_same_representation_gradients():
    results = []
    for checkpointed in (False, True):
        net, x, targets = world()
        if checkpointed:
            checkpoint_modules(net.trunk.blocks)
        results.append(step(net, MGDA(TASKS, mode="representation"), x, targets))
    assert_same(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0].weights, results[1][0].weights)


def test_patterns_choose_what_counts_as_shared():
    net, x, targets = world(shared_head=True)
    report, grads = step(net, MGDA(TASKS, heads="unweighted"), x, targets, patterns=["trunk.blocks.0.*"])
    found = net(x)
    losses = [(found[k] - targets[k]).square().sum() / len(x) for k in TASKS]
    names = [n for n, _ in net.named_parameters()]
    counted = [p for n, p in net.named_parameters() if n.startswith("trunk.blocks.0.")]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, counted, retain_graph=True)]) for loss in losses]
    torch.testing.assert_close(report.grad_norms, torch.stack(rows).norm(dim=1), rtol=1e-4, atol=1e-6)
    plain = torch.autograd.grad(sum(losses), list(net.parameters()), retain_graph=True)
    chosen = torch.autograd.grad(
        sum(w * loss for w, loss in zip(report.weights, losses, strict=True)), list(net.parameters())
    )
    for name, got, one, other in zip(names, grads, plain, chosen, strict=True):
        want = other if name.startswith("trunk.blocks.0.") else one
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match=r"matches 'trunk.block.0.\*'"):
        step(net, MGDA(TASKS), x, targets, patterns=["trunk.block.0.*"])


@pytest.mark.parametrize("mode", ["parameters", "gram", "representation"])
@pytest.mark.parametrize("name", sorted(set(METHODS) | {"mgda_ub"}))
def test_scales(name, mode):
    sums = {}
    for scale in ("one", "tasks"):
        net, x, targets = world()
        keys = CONFIGS[name] | {"scale": scale} | ({"max_norm": 0.0} if "max_norm" in CONFIGS[name] else {})
        keys |= {"mode": mode} if "mode" in keys else {}
        sums[scale] = step(net, build(keys, TASKS), x, targets)[0].weights.abs().sum().item()
    assert sums["one"] == pytest.approx(1.0, rel=1e-4) and sums["tasks"] == pytest.approx(3.0, rel=1e-4)


class Streams(nn.Module):
    """Where pieces run together: a residual stream, a parameter added to it, a branch that is read again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(6))
        self.first = nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in TASKS})

    def forward(self, x):
        start = self.first(x) + self.position
        z = start.tanh()
        early = None
        for norm, layer in zip(self.norms, self.layers, strict=True):
            z = z + layer(norm(z)).tanh()
            early = z if early is None else early
        z = z * early + start  # reached through the stream, and beside it
        first, second = z.chunk(2, 1)  # a node of two outputs
        z = torch.cat([second, first], 1) + self.position
        return {name: head(z) for name, head in self.heads.items()}


@pytest.mark.parametrize("worth", [0.0, 0.5, 1.0, 2.0, float("inf")])
def test_any_choice_of_cuts_gives_the_same(worth, monkeypatch):
    monkeypatch.setattr(lockstep, "_WORTH", worth)
    results = []
    for mode in ("parameters", "gram"):
        net, x, targets = world(shared_head=True)
        results.append(step(net, MGDA(TASKS, mode=mode), x, targets))
    torch.testing.assert_close(results[0][0].cosines, results[1][0].cosines, rtol=1e-3, atol=1e-5)
    assert_same(results[1][1], results[0][1], 1e-3)


@pytest.mark.parametrize("worth", [1.0, 6.0, float("inf")])
def test_pieces_that_run_together_count_once(worth, monkeypatch):
    monkeypatch.setattr(lockstep, "_WORTH", worth)
    results = []
    for mode in ("parameters", "gram"):
        torch.manual_seed(0)
        net, x = Streams(), torch.randn(12, 6)
        targets = {name: torch.randn(12, 1) for name in TASKS}
        results.append(step(net, MGDA(TASKS, mode=mode), x, targets))
    (first, plain), (second, gram) = results
    torch.testing.assert_close(first.grad_norms, second.grad_norms, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.cosines, second.cosines, rtol=1e-4, atol=1e-5)
    assert_same(gram, plain, 1e-3)


def test_a_residual_stream_hands_its_gradient_on_block_by_block():
    """And not to all branches before at once, where it would wait for K tasks: a piece begins at few cuts."""
    torch.manual_seed(0)
    net = Streams()
    net.norms, net.layers = (
        nn.ModuleList(make() for _ in range(8)) for make in (lambda: nn.LayerNorm(6), lambda: nn.Linear(6, 6))
    )
    x = torch.randn(4, 6)
    reach = find_reach({k: [v] for k, v in net(x).items()}, list(net.parameters()))
    engine = Engine(
        MGDA(TASKS, mode="gram"), list(net.parameters()), reach, micro_batches=1, reduce=identity,
        device=torch.device("cpu"), model=net,
    )  # fmt: skip
    engine.begin(torch.full((3,), 4.0))
    engine.backward({k: v.square().sum() for k, v in net(x).items()})
    pieces = engine.main.graph.pieces
    assert max(len(piece.sources) for piece in pieces) <= 4  # at the end of the net
    assert sum(piece.cut.outer == piece.cut.entry for piece in pieces) >= 8, "joins"
