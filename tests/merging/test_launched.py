"""Merges of runs in this process: rounds, tangent space, adapters, what the result says."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.signature import signature
from runner.errors import UserError
from runner.exporting.folder import export
from runner.launching import needs
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.merging.launched import compare_with_experts, merge_run
from runner.tasks.classification import Classification
from runner.tasks.depth import Depth
from runner.training.loop import train
from tests.support import TINY, weights

SMALL = [
    *TINY, "mixture.train=8", "mixture.validation=2", "mixture.test=2", "tasks=[segmentation,depth]", "name=merge",
    "trainer.max_steps=2", "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.batch_size=2",
    "backbone.norm=group", "launch.device=cpu", "tracking.console=quiet", "merging.diagnostics=[vectors]",
]  # fmt: skip


def frozen(place: Path, *overrides: str) -> dict:
    return finalize(compose("train", [*SMALL, f"output_dir={place}", *overrides]))


def execute(config: dict) -> Path:
    """A run and all that it needs, in this process; what is there is found."""
    paths = {}
    for need in needs.needs(config):
        paths[need.signature] = needs.find(need) or execute(need.config)
    run = RunDirectory.claim(config, "train", [])
    run.update(needs=[need.entry(paths[need.signature]) for need in needs.needs(config)])
    work = merge_run if config["merge"].get("_target_") else train
    assert work(run, StopFlag()) == 0
    return run.path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return execute(frozen(tmp_path_factory.mktemp("base"), "tasks=[normals,edge]", "name=base"))


def result(path: Path) -> dict:
    return json.loads((path / "result.json").read_text())


def test_rounds_are_a_chain_of_merges_with_the_budget_shared(base, tmp_path):
    config = frozen(tmp_path, f"init={base}", "merge=task_arithmetic", "merge.rounds=3", "trainer.max_steps=9")
    steps, chain = [], config
    while isinstance(chain["init"], dict):
        steps.append(chain["trainer"]["max_steps"])
        chain = chain["init"]["config"]
    assert [*steps, chain["trainer"]["max_steps"]] == [3, 3, 3] and chain["init"] == str(base)
    found = needs.needs(config)
    assert [need.role for need in found] == ["base", "expert", "expert"]
    assert all(need.config["init"] == config["init"] for need in found[1:])
    once = frozen(tmp_path, f"init={base}", "merge=task_arithmetic", "trainer.max_steps=9")
    assert signature(once) != signature(config)
    with pytest.raises(UserError, match=r"merge\.rounds=4 shares trainer\.max_steps=3"):
        frozen(tmp_path, f"init={base}", "merge=task_arithmetic", "merge.rounds=4", "trainer.max_steps=3")


def test_strategies_share_their_experts_and_diagnostics_change_no_signature(base, tmp_path):
    def expert_signatures(*more: str) -> list[str]:
        return [need.signature for need in needs.experts(frozen(tmp_path, f"init={base}", *more))]

    assert expert_signatures("merge=ties") == expert_signatures("merge=adamerging", "merging.adapt=test")
    assert expert_signatures("merge=ties") != expert_signatures("merge=ties", "finetune=linearized")
    assert expert_signatures("merge=none") == []
    one = frozen(tmp_path, f"init={base}", "merge=ties")
    assert signature(one) == signature(frozen(tmp_path, f"init={base}", "merge=ties", "merging.diagnostics=[barrier]"))
    assert signature(one) != signature(frozen(tmp_path, f"init={base}", "merge=ties", "merging.scales=[1.0]"))


@pytest.mark.slow
def test_two_rounds_start_from_one_another(base, tmp_path):
    run = execute(frozen(tmp_path, f"init={base}", "merge=task_arithmetic", "merge.rounds=2", "merging.scales=[0.5]"))
    entries = json.loads((run / "run.json").read_text())["needs"]
    first = next(Path(n["path"]) for n in entries if n["role"] == "base")
    own, before = weights(run, "best"), weights(first, "best")
    experts = [weights(Path(path), "best") for path in result(run)["merge"]["experts"].values()]
    for name in (n for n in own if n.startswith("backbone.")):
        expected = before[name] + 0.5 * sum(e[name] - before[name] for e in experts)
        assert torch.allclose(own[name], expected, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [["finetune=linearized"], ["adapter=lora", "adapter.targets=[convolution]", "adapter.rank=2"]],
    ids=["linearized", "lora"],
)
def test_linearised_and_adapted_experts_merge(base, tmp_path, extra):
    run = execute(frozen(tmp_path, f"init={base}", "merge=average", *extra))
    found = result(run)
    assert found["status"] == "COMPLETED" and set(found["tasks"]) == {"segmentation", "depth"}
    assert found["diagnostics"]["vectors"]["norms"]["depth"] > 0
    state = weights(run, "best")
    assert not any(".lora_" in name for name in state)
    if "finetune=linearized" not in extra:  # with and without its adapter: a merge, and one of its experts
        for source in (run, Path(found["merge"]["experts"]["depth"])):
            export(RunDirectory.open(source), tmp_path / source.name, "best", None, None)
            assert (tmp_path / source.name / "config.json").is_file() or any(
                (tmp_path / source.name).rglob("*.safetensors")
            )
    inner = "backbone.point." if "finetune=linearized" in extra else "backbone."
    start = weights(base, "best")
    assert {inner + n.removeprefix("backbone.") for n in start if n.startswith("backbone.")} <= set(state)


@pytest.mark.slow
def test_a_module_evaluates_but_is_no_folder_of_weights(base, tmp_path):
    run = execute(frozen(tmp_path, f"init={base}", "merge=output_ensemble"))
    assert result(run)["merge"]["bytes"] > 1.9 * result(run)["merge"]["expert_bytes"]
    with pytest.raises(UserError, match=r"module of its own \(OutputEnsemble\)"):
        export(RunDirectory.open(run), tmp_path / "out", "best", None, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stop_between_pieces_of_work_is_resumable(base, tmp_path):
    config = frozen(tmp_path, f"init={base}", "merge=task_arithmetic", "merging.scales=[0.5]")
    finished = execute(config)
    run = RunDirectory.claim(config, "train", [])
    run.update(needs=json.loads((finished / "run.json").read_text())["needs"])
    flag = StopFlag()
    flag.signal = signal.SIGTERM
    assert merge_run(run, flag) == 75
    assert run.info()["status"] == "STOPPED" and not (run.path / "result.json").exists()
    assert merge_run(run, StopFlag()) == 0
    assert result(run.path)["tasks"] == result(finished)["tasks"]


def test_what_is_left_of_the_experts():
    tasks = {"a": Classification("a", num_classes=2), "b": Classification("b", num_classes=2)}
    found = compare_with_experts(
        tasks,
        {"a": {"accuracy": 0.8}, "b": {"accuracy": 0.6}},
        {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.5}},
        {"a": {"accuracy": 1.0}, "b": {"accuracy": 0.8}},
    )
    assert found["retained"] == {"a": pytest.approx(0.8), "b": pytest.approx(0.75)}
    assert found["normalised"] == pytest.approx(0.775) and found["absolute"] == pytest.approx(0.7)
    assert found["gap"] == pytest.approx(0.4) and found["gap_recovered"] == pytest.approx(0.5)


def test_metrics_of_different_units_have_no_mean_and_down_is_turned_around():
    tasks = {"a": Classification("a", num_classes=2), "b": Depth("b")}
    down = tasks["b"].headline
    assert tasks["b"].directions[down] == "down"
    values = [{"a": {"accuracy": v}, "b": {down: w}} for v, w in ((0.5, 2.0), (0.4, 4.0), (1.0, 1.0))]
    found = compare_with_experts(tasks, *values)
    assert found["retained"] == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    assert found["absolute"] is None and found["gap"] is None and found["gap_recovered"] is None
