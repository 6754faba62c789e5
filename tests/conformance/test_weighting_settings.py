"""Every option of configs/weighting in every setting that a run can have: exact, or refused.

Together with `test_weightings.py` (accumulation, loss scaling, one task, absent tasks, resume, sizes of the losses),
over every option and mode. Real processes and whole runs: `tests/training/test_processes.py`,
`tests/launching/test_weighting_resume.py`.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.utils.checkpoint import checkpoint

from runner.config.build import build
from runner.config.paths import config_root
from runner.errors import UserError
from runner.weighting.base import CrossWeighting, LossWeighting
from runner.weighting.engine import Engine
from runner.weighting.reach import find_reach
from runner.weighting.step import NonFiniteLoss, identity
from tests.training.wrappers.worlds import Ranks

OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path(config_root()).glob("weighting/*.yaml"))}
MODES = ("gram", "representation")
CASES = OPTIONS | {
    f"{name}-{mode}": config | {"mode": mode} for name, config in OPTIONS.items() if "mode" in config for mode in MODES
}
RANDOM = {"rlw", "pcgrad", "gradvac", "graddrop"}
"""Methods that draw: what they draw belongs to a task's place."""
TASKS = {name: SimpleNamespace(loss_kind="regression") for name in "abc"}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def make(case, tasks=TASKS):
    return build(CASES[case], tasks)


class Net(nn.Module):
    """A trunk of two layers and a bent head per task."""

    representation = "trunk"

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)) for name in TASKS})
        if recompute:
            inside = self.trunk.forward
            self.trunk.forward = lambda x: checkpoint(inside, x, use_reentrant=False)  # type: ignore[method-assign]

    def forward(self, x_BF, names):
        z = self.trunk(x_BF)
        return {name: self.heads[name](z) for name in names}


def examples(count=16, names=TASKS, seed=1):
    """A group: inputs, and a target per task."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=g), {name: torch.randn(count, 1, generator=g) for name in names}


def rows(group, chosen, names=None):
    x, targets = group
    return x[chosen], {name: y[chosen] for name, y in targets.items() if names is None or name in names}


def split(group, pieces):
    """One group per micro-batch."""
    return [[rows(group, part)] for part in torch.arange(len(group[0])).chunk(pieces)]


def counts_of(batches, tasks=TASKS):
    """(M, K) labels."""
    return torch.tensor(
        [[float(sum(len(x) for x, targets in batch if name in targets)) for name in tasks] for batch in batches]
    )


def squares(name, prediction, target):
    return (prediction - target).square().sum()


class World:
    """One process: a net, a weighting and its engine, over several steps."""

    def __init__(
        self, weighting, *, net=None, reduce=identity, micro_batches=1, scale=1.0, loss=squares, skippable=True
    ) -> None:
        self.net, self.weighting, self.loss = net or Net(), weighting, loss
        self.scale, self.micro_batches = scale, micro_batches
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        probe = self.net(torch.zeros(1, 4), list(weighting.task_names))
        self.engine = Engine(
            weighting, self.parameters, find_reach({k: [v] for k, v in probe.items()}, self.parameters),
            micro_batches=micro_batches, reduce=reduce, device=torch.device("cpu"), loss_scale=lambda: self.scale,
            model=self.net, skippable=skippable,
        )  # fmt: skip

    def step(self, batches, counts=None, number=0):
        """Unscaled gradients by name, and the report."""
        names = self.weighting.task_names
        self.engine.begin(counts_of(batches, names) if counts is None else counts, number, 2)
        for batch in batches:
            sums = {}
            for x, targets in batch:
                for name, prediction in self.net(x, list(targets)).items():
                    loss = self.loss(name, prediction.float(), targets[name])
                    sums[name] = sums[name] + loss if name in sums else loss
            self.engine.backward(sums)
        report = self.engine.finish()
        if self.weighting.wants_second_losses:
            present = self.engine.present
            fallen = torch.tensor([0.5 + 0.1 * sorted(TASKS).index(names[k]) for k in present])
            self.weighting.after_update(report.losses[present] * fallen, torch.tensor(present, dtype=torch.int64))
        grads = {n: p.grad / self.scale for n, p in self.net.named_parameters() if p.grad is not None}
        return grads, report


def parts_of(weighting, at_least=1):
    return math.lcm(sum(weighting.parts), at_least)


def one_step(case, batches=None, **settings):
    weighting = make(case)
    batches = batches or split(examples(), parts_of(weighting))
    return World(weighting, micro_batches=len(batches), **settings).step(batches)


def assert_close(got, want, rtol=2e-4, atol=2e-6):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def assert_whole(grads, report, names=TASKS):
    assert all(grad.isfinite().all() for grad in grads.values())
    assert {name.split(".")[1] for name in grads if name.startswith("heads")} == set(names)
    here = [list(TASKS).index(name) for name in names]
    assert report.weights[here].isfinite().all() and report.losses[here].isfinite().all()


def assert_unchanged(weighting, state):
    """To the bit, but for generators and counters, and what `begin_step` drew."""
    after = weighting.state_dict()
    for name in state:
        if after[name].is_floating_point():
            torch.testing.assert_close(after[name], state[name], rtol=0, atol=0, equal_nan=True)


def test_two_processes_equal_one(case):
    """Two steps; in the second, one of the processes has no label of a task."""
    group = examples()
    micro = parts_of(make(case), 2)
    pieces = [part[0] for part in split(group, 2 * micro)]
    steps = []
    for lost in ((), ("b",)):
        ranks = [
            [[rows(piece, slice(None), set(TASKS) - set(lost if rank else ()))] for piece in pieces[rank::2]]
            for rank in range(2)
        ]
        steps.append((ranks, [ranks[0][m] + ranks[1][m] for m in range(micro)]))
    if case.endswith("-gram"):
        with pytest.raises(UserError, match=r"launch.num_processes=1"):
            World(make(case), reduce=lambda tensor: tensor)
        return
    alone = World(make(case), micro_batches=micro)
    want = [alone.step(whole, number=n) for n, (_, whole) in enumerate(steps)]
    ready = [World(make(case), micro_batches=micro) for _ in range(2)]  # threads share one random generator

    def work(rank, reduce):
        world = ready[rank]
        world.engine.reduce = reduce
        return [world.step(ranks[rank], counts_of(whole), n) for n, (ranks, whole) in enumerate(steps)]

    for (one, report), (first, _), (second, other) in zip(want, *Ranks(2).run(work), strict=True):
        assert_close(second, first, rtol=0, atol=0)
        assert_close(first, one)
        torch.testing.assert_close(other.weights, report.weights, rtol=1e-4, atol=1e-6)


def test_labels_that_only_some_examples_have(case):
    """A task that half of the batch has labels for, in one micro-batch or in several."""
    group, weighting = examples(), make(case)
    halves = [rows(group, slice(0, 8)), rows(group, slice(8, 16), ["a", "c"])]
    if isinstance(weighting, CrossWeighting):  # compares parts: b is in the first two of them only
        assert_whole(*one_step(case, [[rows(half, part)] for half in halves for part in (slice(0, 4), slice(4, 8))]))
        return
    whole, report = one_step(case, [halves])
    assert_whole(whole, report)
    if not case.endswith("-gram"):  # refused with several micro-batches, see test_weightings
        assert_close(one_step(case, [[half] for half in halves])[0], whole)


def test_tasks_on_different_data(case):
    """One group per task, as a mixture of data sets draws them; two of them in a step, or all three."""
    sets = {name: examples(8, [name], seed) for seed, name in enumerate(TASKS)}
    weighting = make(case)
    for names in (list(TASKS), ["a", "c"]):
        pieces = parts_of(weighting)
        batches = [[rows(sets[k], part) for k in names] for part in torch.arange(8).chunk(pieces)]
        grads, report = one_step(case, batches)
        assert_whole(grads, report, names)
        if case.endswith("-gram"):
            assert_close(one_step(case.removesuffix("-gram"), batches)[0], grads)
        else:
            finer = [[rows(sets[k], part) for k in names] for part in torch.arange(8).chunk(2 * pieces)]
            assert_close(one_step(case, finer)[0], grads)


def test_bf16_autocast(case):
    """Near the float32 step, as far as eight bits go; gradients are float32."""
    plain, _ = one_step(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads, report = one_step(case)
    assert_whole(grads, report)
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    one, other = (torch.cat([g[name].flatten() for name in plain]) for g in (plain, grads))
    assert torch.cosine_similarity(one, other, dim=0) > 0.97


def test_the_loss_scaler_changes_nothing_and_skips_an_overflow(case):
    """fp16 training scales the loss; here with everything else in float32."""
    batches = split(examples(), parts_of(make(case)))
    plain, _ = one_step(case)
    world = World(make(case), micro_batches=len(batches))
    sgd = torch.optim.SGD(world.parameters, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    scaler.scale(torch.zeros(()))
    world.scale = scaler.get_scale()
    world.step(batches)
    scaler.unscale_(sgd)
    assert_close({n: p.grad for n, p in world.net.named_parameters()}, plain)
    before = copy.deepcopy(world.net.state_dict())
    state = copy.deepcopy(world.weighting.state_dict())
    sgd.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    scaler.scale(torch.zeros(()))
    world.scale = scaler.get_scale()
    world.weighting.wants_second_losses = False  # the loop asks for none after a skipped step
    world.step([[(x, {k: 100 * y for k, y in targets.items()}) for x, targets in batch] for batch in batches], number=1)
    scaler.unscale_(sgd)
    scaler.step(sgd)
    scaler.update()
    if case in ("si", "stch"):
        return  # gradients of logarithms are small: nothing overflows
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(before[n], p) for n, p in world.net.named_parameters())
    assert all(value.isfinite().all() for value in world.weighting.parameters())
    if not isinstance(world.weighting, LossWeighting):  # which may remember losses: those were whole
        assert_unchanged(world.weighting, state)


def test_activation_checkpointing(case):
    plain, report = one_step(case)
    grads, again = one_step(case, net=Net(recompute=True))
    assert_close(grads, plain)
    torch.testing.assert_close(again.weights, report.weights, rtol=1e-4, atol=1e-6)


def test_frozen_parts(case):
    """A layer, a whole head, the whole trunk (no shared parameter), every head (no task-specific one)."""
    for frozen in ("trunk.0", "trunk.2", "heads.b", "trunk", "heads"):
        net = Net()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        grads, report = one_step(case, net=net)
        assert all(grad.isfinite().all() for grad in grads.values()) and report.weights.isfinite().all()
        assert set(grads) == {n for n, p in net.named_parameters() if p.requires_grad}, frozen
        assert sum(float(g.abs().sum()) for g in grads.values()) > 0, frozen
    alone, _ = World(make("equal"), net=copy_frozen("trunk")).step([[examples()]])
    grads, _ = one_step(case, net=copy_frozen("trunk"))
    for task in TASKS:  # every head follows its own loss, or stands still
        own = [n for n in alone if n.startswith(f"heads.{task}.")]
        one, other = (torch.cat([g[n].flatten() for n in own]) for g in (alone, grads))
        assert torch.cosine_similarity(one, other, dim=0).abs() > 0.999 or not other.any()


def copy_frozen(part):
    net = Net()
    getattr(net, part).requires_grad_(False)
    return net


def zero_gradient(name, prediction, target):
    return (prediction * 0 + 1).sum() if name == "b" else squares(name, prediction, target)


def opposite(name, prediction, target):
    return (9 - (prediction - target).square()).sum() if name == "b" else squares(name, prediction, target)


def test_degenerate_gradients(case):
    """Zero; opposite; and, with the plain loss, three that are equal."""
    for loss in (zero_gradient, opposite, squares):
        net = Net()
        for head in net.heads.values():
            head.load_state_dict(net.heads["a"].state_dict())
        x, targets = examples()
        weighting = make(case)
        batches = split((x, dict.fromkeys(TASKS, targets["a"])), parts_of(weighting))
        assert_whole(*World(weighting, net=net, loss=loss, micro_batches=len(batches)).step(batches))


def test_losses_of_different_sizes(case):
    for sizes in ((1e-6, 1e6, 1.0), (1e6, 1e6, 1e-6)):
        factor = dict(zip(TASKS, sizes, strict=True))
        assert_whole(*one_step(case, loss=lambda k, y, target, f=factor: f[k] * squares(k, y, target)))


def test_a_loss_that_is_not_finite_names_its_task(case):
    weighting = make(case)
    group = examples()
    group[1]["b"][3] = float("nan")
    state = copy.deepcopy(weighting.state_dict())
    batches = split(group, parts_of(weighting))
    with pytest.raises(NonFiniteLoss) as error:
        World(weighting, micro_batches=len(batches)).step(batches)
    assert error.value.tasks == ["b"]
    if not isinstance(weighting, CrossWeighting):  # has used the parts before by then
        assert_unchanged(weighting, state)


@pytest.mark.parametrize("name", sorted(set(CASES) - {c for c in CASES if c.partition("-")[0] in RANDOM}))
def test_the_order_of_the_tasks_does_not_matter(name):
    weighting, other = make(name), build(CASES[name], dict(reversed(TASKS.items())))
    pieces = parts_of(weighting)
    group = examples()
    worlds = [World(w, net=Net(), micro_batches=pieces) for w in (weighting, other)]
    for number in range(3):
        one, two = (world.step(split(group, pieces), number=number) for world in worlds)
        assert_close(two[0], one[0])
        torch.testing.assert_close(two[1].weights.flip(0), one[1].weights, rtol=1e-4, atol=1e-6)


def test_a_step_without_any_label(case):
    """Nothing to learn from: no gradient but zero, nothing broken for the next step."""
    weighting = make(case)
    pieces = parts_of(weighting)
    world = World(weighting, micro_batches=pieces)
    empty = [[rows(examples(), part, [])] for part in torch.arange(16).chunk(pieces)]
    grads, report = world.step(empty, torch.zeros(pieces, 3))
    assert report.weights.isnan().all() and report.losses.isnan().all()
    assert not any(grad.any() for grad in grads.values())
    assert_whole(*world.step(split(examples(), pieces), number=1))
