"""Every architecture, wrapper, weighting and strategy on a device that is not the CPU (a simulated one).

Nothing may be left behind on the CPU, and a step may make the host wait for the device a few times only.
"""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

from runner.config.build import build
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.merging.data import TaskData
from runner.merging.modules import realise
from runner.merging.sources import Models
from runner.merging.with_data.common import base_of, experts_of
from runner.training import loop
from runner.training.processes import Processes
from tests.backbones.samples import options
from tests.conformance.test_data_merges import OPTIONS, QUICK, composed
from tests.merging.toy import make
from tests.simulated import SIMULATED, Simulated, WrongDevice, simulated
from tests.support import TINY

SMALL = [
    *TINY,
    "mixture.train=24",
    "mixture.validation=2",
    "mixture.test=2",
    "trainer.batch_size=4",
    "trainer.eval_every=null",
    "trainer.checkpoint_every=null",
    "trainer.log_every=100",
    "trainer.max_steps=3",
]
WITH = {  # what an option does not work without
    "slimmable": ["wrapper=ci_kd"],
    "mtsl": ["wrapper=mtsl"],
    "vtagml": ["wrapper=task_affinity", "backbone=vit", "backbone.size=tiny", "backbone.frozen=true"],
    "task_prompter": ["backbone=vit", "backbone.size=tiny", "architecture.channels=16"],
    "modo": ["trainer.batch_size=8"],
    "sdmgrad": ["trainer.batch_size=12"],
}
USUAL = 9
"""Waits of a step: labels that are there, losses, norm of the gradient; Gram matrix, coefficients for the log; some of
the method's own."""
LOOKS = Counter(
    {
        "architecture=atrc_search": 16,  # one per choice that has still to be made
        "weighting=auto_lambda": 5,  # methods that look ahead decide by what they see
        "weighting=coba": 1,
        "weighting=forum": 16,
        "weighting=moml": 3,
    }
)
"""Waits beyond those."""


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Sums over GPUs are sums of what lies on them."""
    assert isinstance(tensor, Simulated)
    return tensor


def waits_of_a_step(place, monkeypatch, *overrides: str) -> Counter[str]:
    """Train three steps on the device; what the host waited for in the second, by line."""
    start, counted = Processes.start, loop.label_counts
    seen: list[Counter[str]] = []

    def there(*arguments):
        processes = start(*arguments)
        processes.device = SIMULATED
        processes.reduce = summed
        return processes

    def at_the_start_of_a_step(*arguments):
        seen.append(Counter(waits))
        return counted(*arguments)

    monkeypatch.setattr(Processes, "start", there)
    monkeypatch.setattr(loop, "label_counts", at_the_start_of_a_step)
    config = finalize(compose("train", [*SMALL, f"output_dir={place}", *overrides]))
    directory = RunDirectory.claim(config, "train", [])
    with simulated() as waits:
        assert loop.train(directory, StopFlag()) == 0
    return seen[2] - seen[1]


def test_the_simulation_refuses_what_a_gpu_refuses():
    with simulated() as waits:
        net = torch.nn.Linear(3, 2)
        weight = net.weight
        net.to(SIMULATED)
        assert net.weight is weight and net.weight.device == SIMULATED
        x = torch.randn(4, 3, device=SIMULATED)
        net(x).square().sum().backward()
        assert isinstance(weight.grad, Simulated) and copy.deepcopy(net).weight.device == SIMULATED
        assert (x + torch.tensor(1.0))[torch.arange(2)].shape == (2, 3)  # single numbers and indices may
        with pytest.raises(WrongDevice, match=r"aten\.add"):
            x + torch.randn(4, 3)
        with pytest.raises(WrongDevice, match=r"aten\.(addmm|mm)"):
            net(torch.randn(4, 3))
        with pytest.raises(WrongDevice, match="numpy"):
            x.numpy()
        with pytest.raises(WrongDevice, match="indexed"):
            torch.randn(4)[torch.arange(2, device=SIMULATED)]
        assert not waits, "only lines of runner count"


def test_a_run_with_everything_that_moves(tmp_path, monkeypatch):
    """Augmentation on the device, accumulation, averaged weights, panels, plots, loss logs, clipping."""
    looks = waits_of_a_step(
        tmp_path, monkeypatch, "mixture.augment.device=accelerator", "trainer.accumulation=2", "trainer.ema=0.9",
        "trainer.panels=2", "tracking.plots=true", "trainer.log_losses=true", "trainer.clip_norm=1", "weighting=pcgrad",
        "trainer.channels_last=true",
    )  # fmt: skip
    assert looks.total() <= USUAL, looks


def cases(group: str) -> list:
    """Overrides that select each option."""
    alone = {"sak", "none"} | set(WITH) if group == "wrapper" else {"sak"}
    inside = {o.split("=")[1] for given in WITH.values() for o in given if o.startswith("wrapper=")} | {"sak_distill"}
    names = [n for n in options(group) if n not in alone and not (group == "wrapper" and n in inside)]
    return [pytest.param([f"{group}={name}", *WITH.get(name, [])], id=f"{group}={name}") for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [*cases("architecture"), *cases("wrapper"), *cases("weighting")])
def test_every_option_trains_there_and_looks_seldom(overrides, tmp_path, monkeypatch):
    looks = waits_of_a_step(tmp_path, monkeypatch, *overrides)
    assert looks.total() <= USUAL + LOOKS[overrides[0]], looks


@pytest.mark.slow
def test_teachers_follow_the_student(tmp_path, monkeypatch):
    from transformers import Dinov2Config, Dinov2Model

    small = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(small).save_pretrained(tmp_path / "dino")
    looks = waits_of_a_step(
        tmp_path, monkeypatch, "architecture=sak", "architecture.paths=[dino]", "wrapper=sak_distill",
        f"wrapper.teachers={{dino: {tmp_path / 'dino'}, dinov2: null, clip: null, sam: null}}",
    )  # fmt: skip
    assert looks.total() <= USUAL, looks


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_every_strategy_with_data_merges_there(option):
    config = composed(option)
    strategy = build(config | {key: value for key, value in QUICK.items() if key in config}, where="merge")
    found, here = make(rows=12)
    with simulated():
        unlabelled, labelled, validation = (
            {task: group.to(SIMULATED) for task, group in (split or {}).items()}
            for split in (here.unlabelled, here.labelled, here.validation)
        )
        model = here.model.to(SIMULATED)
        data = TaskData(model, here.tasks, unlabelled, labelled, validation, reference=here.reference)
        experts = {e: {n: t.to(SIMULATED) for n, t in tensors.items()} for e, tensors in experts_of(found).items()}
        models = Models.in_memory(experts, {n: t.to(SIMULATED) for n, t in base_of(found).items()})
        final = realise(strategy.fit(models, data), strategy, model, models)
        with torch.no_grad():
            for task, group in validation.items():
                assert final(group, [task])[task].device == SIMULATED
