"""Merges of runs in this process: rounds, tangent space, adapters, what the result says."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from runner.config.compose import compose
from runner.config.freeze import finalize, finalize_eval
from runner.config.signature import signature
from runner.errors import UserError
from runner.exporting.folder import export
from runner.launching import needs, schedule
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.merging import launched, outcome
from runner.merging.launched import empty_result, merge_run
from runner.merging.loading import load_expert, plain_parts
from runner.merging.outcome import compare_with_experts
from runner.merging.scaling import merge_with
from runner.predicting.opened import Opened
from runner.predicting.predictor import Predictor
from runner.tasks.classification import Classification
from runner.tasks.depth import Depth
from runner.training.checkpoints import Checkpoints, load_weights
from runner.training.evaluate import evaluate
from runner.training.loop import train
from runner.training.verbs import evaluate_run
from runner.types import Group
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


def test_in_a_sweep_an_expert_knows_its_base(tmp_path):
    """The base of `init.experiment` is a needed run of a needed run."""
    words = ["tracking.console=quiet", "launch.device=cpu", *(w for w in SMALL if "." in w or w.startswith("tasks="))]
    config = frozen(tmp_path, f"init={{experiment: demo, overrides: {json.dumps(words)}}}", "merge=average")
    jobs = schedule.collect_needs([(None, config)], [])
    base, *experts = jobs
    assert [job.need.role for job in jobs] == ["base", "expert", "expert"]
    assert all({*job.after} == {base} for job in experts) and not schedule.may_start(experts[0])
    run = base.open()
    assert "needs" not in run.info() and train(run, StopFlag()) == 0
    base.end(0)
    assert schedule.may_start(experts[0])
    tuned = experts[0].open()
    assert [(n["role"], n["path"]) for n in tuned.info()["needs"]] == [("base", str(run.path))]
    assert train(tuned, StopFlag()) == 0


SUBSETS = ["tasks=[segmentation,depth,edge]", "merging.experts={maps: [segmentation, depth]}"]


def test_experts_of_named_subsets_are_runs_of_their_tasks(base, tmp_path):
    found = needs.experts(frozen(tmp_path, f"init={base}", "merge=average", *SUBSETS))
    assert [need.tasks for need in found] == [("segmentation", "depth"), ("edge",)]
    assert [need.config["name"] for need in found] == ["merge/expert/maps", "merge/expert/edge"]
    alone = needs.experts(frozen(tmp_path, f"init={base}", "merge=average", SUBSETS[0]))
    assert alone[2].signature == found[1].signature  # an expert does not know what others are tuned on


@pytest.mark.parametrize(
    ("subsets", "words"),
    [
        ("{maps: [segmentation, dept]}", "unknown task 'dept' in merging.experts.maps"),
        ("{maps: [segmentation], more: [segmentation, edge]}", "'segmentation' is named in maps and in more"),
        ("{maps: [segmentation, depth, edge]}", "one expert of all tasks leaves nothing to merge"),
        ("{depth: [segmentation]}", "'depth' is the name of a task"),
        ("{maps: []}", "'maps' is not a name with tasks"),
        ("{maps: segmentation}", "must be"),
    ],
)
def test_subsets_that_cannot_be(base, tmp_path, subsets, words):
    with pytest.raises(UserError, match=words):
        frozen(tmp_path, f"init={base}", "merge=average", SUBSETS[0], f"merging.experts={subsets}")


@pytest.mark.slow
def test_an_expert_of_two_tasks_counts_once_and_serves_both(base, tmp_path):
    run = execute(frozen(tmp_path, f"init={base}", "merge=average", *SUBSETS, "merging.diagnostics=[vectors,barrier]"))
    found = result(run)
    paths = {expert: Path(path) for expert, path in found["merge"]["experts"].items()}
    assert list(paths) == ["maps", "edge"] and list(found["tasks"]) == ["segmentation", "depth", "edge"]
    assert found["experts"]["depth"] == result(paths["maps"])["tasks"]["depth"]
    assert list(found["diagnostics"]["barrier"]) == ["maps~edge"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {row["metric"]: row["value"] for row in rows if row["task"] == "" and row["split"] == "test"}
    assert told == {"stored": 1.0, "normalised": found["merge"]["normalised"]}
    own, experts = weights(run, "best"), {e: weights(path, "best") for e, path in paths.items()}
    for name in (n for n in own if n.startswith("backbone.")):
        assert torch.allclose(own[name], (experts["maps"][name] + experts["edge"][name]) / 2, atol=1e-6), name
    for task, expert in (("segmentation", "maps"), ("depth", "maps"), ("edge", "edge")):
        for name in (n for n in own if n.startswith(f"heads.{task}.")):
            assert torch.equal(own[name], experts[expert][name]), name

    masked = execute(frozen(tmp_path, f"init={base}", "merge=tvq", "merge.bits=8", *SUBSETS))  # weights per expert
    checkpoint = Checkpoints(masked / "checkpoints").find("best")
    config = RunDirectory.open(masked).config()
    switch = empty_result(config, plain_parts(config).model, checkpoint)
    load_weights(switch, checkpoint / "model.safetensors")
    assert switch.owner == {"segmentation": "maps", "depth": "maps", "edge": "edge"}
    for expert in ("maps", "edge"):
        for name, tensor in switch.weights(expert).items():
            reach = (experts[expert][name] - weights(base, "best")[name]).abs().max()
            assert torch.allclose(tensor, experts[expert][name], atol=float(reach) / 100 + 1e-7), name


def test_an_expert_of_another_model_is_refused(base):
    other = plain_parts(frozen(base.parent, "tasks=[normals,edge]", "architecture.dense_head.channels=8")).model
    with pytest.raises(UserError, match=r"the expert of edge in .* is of another model") as error:
        load_expert(other, base, ("edge",))
    assert "first heads.edge." in str(error.value)


@pytest.mark.slow
def test_codes_per_task_need_not_be_used(base, tmp_path):
    """Quantised finely enough, the shared model is that of task arithmetic, with its scale chosen in the same way."""
    words = [f"init={base}", "merging.scales=[0.25,0.5]"]
    plain = result(execute(frozen(tmp_path, *words, "merge=task_arithmetic")))
    run = execute(frozen(tmp_path, *words, "merge=tvq", "merge.bits=16", "merging.per_task=false"))
    found = result(run)
    assert found["merge"]["bytes"] == found["merge"]["model_bytes"] and len(found["merge"]["curve"]) == 2
    assert found["merge"]["normalised"] == pytest.approx(plain["merge"]["normalised"], rel=1e-3)
    masked = execute(frozen(tmp_path, *words, "merge=tall_mask", "merging.per_task=false"))
    own, start = weights(masked, "best"), weights(base, "best")
    experts = [weights(Path(path), "best") for path in result(masked)["merge"]["experts"].values()]
    name = next(n for n in own if n.startswith("backbone."))
    assert torch.allclose(own[name], start[name] + sum(e[name] - start[name] for e in experts), atol=1e-6)


@pytest.mark.slow
def test_thirty_scales_read_the_experts_once(base, tmp_path, monkeypatch):
    """Once the merge begins, the experts' weights are not there any more."""
    scales = [round(0.05 * n, 2) for n in range(30)]

    def merge_without_files(strategy, models, data, settings, check_stop):
        folders = list((tmp_path / "train").rglob("expert/*/*/checkpoints"))
        assert len(folders) == 2
        for folder in folders:
            shutil.rmtree(folder)
        return merge_with(strategy, models, data, settings, check_stop)

    monkeypatch.setattr(launched, "merge_with", merge_without_files)
    run = execute(frozen(tmp_path, f"init={base}", "merge=task_arithmetic", f"merging.scales={scales}"))
    curve = result(run)["merge"]["curve"]
    assert [point["scale"] for point in curve] == scales
    assert len({round(point["normalised"], 9) for point in curve}) > 20


@pytest.mark.slow
def test_the_base_is_judged_once_for_all_strategies(base, tmp_path, monkeypatch):
    first = result(execute(frozen(tmp_path, f"init={base}", "merge=average")))
    judged = []
    monkeypatch.setattr(outcome, "evaluate", lambda model, *a, **k: judged.append(a[1]) or evaluate(model, *a, **k))
    second = result(execute(frozen(tmp_path, f"init={base}", "merge=weighted", "merge.weights=[0.9,0.1]")))
    assert len(judged) == 2  # the merged model on validation and test
    assert second["base"] == first["base"] and second["tasks"] != first["tasks"]


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


def test_a_module_predicts_as_it_evaluates(base, tmp_path):
    """A merge that is a module of its own colours pictures like any run."""
    merged = execute(frozen(tmp_path, "merge=tall_mask", f"init={base}"))
    opened = Opened.open(RunDirectory.open(merged), "best", "cpu")
    found = Predictor.of(opened)
    example = plain_parts(RunDirectory.open(merged).config()).mixture.datasets("test")["rooms"].example(0, None)
    pixels = torch.from_numpy(example.inputs["pixels"])[None]
    with torch.no_grad():
        expected = opened.model(Group("x", {"pixels": pixels}), list(found.tasks))
    image = Image.fromarray((example.inputs["pixels"].transpose(1, 2, 0) * 255).round().astype("uint8"))
    for task, prediction in found.predict(image, "native").items():
        torch.testing.assert_close(torch.from_numpy(prediction), expected[task][0], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_module_evaluates_but_is_no_folder_of_weights(base, tmp_path):
    run = execute(frozen(tmp_path, f"init={base}", "merge=output_ensemble"))
    assert result(run)["merge"]["bytes"] > 1.9 * result(run)["merge"]["expert_bytes"]
    with pytest.raises(UserError, match=r"module of its own \(OutputEnsemble\)"):
        export(RunDirectory.open(run), tmp_path / "out", "best", None, None)
    assert not (tmp_path / "out").exists()
    again = compose("eval", [f"run={run}", f"output_dir={tmp_path}", "launch.device=cpu"])
    evaluated = RunDirectory.claim({**finalize_eval(again), "name": "merge"}, "eval", [])
    assert evaluate_run(evaluated) == 0
    for key in ("tasks", "parameters"):  # the parameters of all experts
        assert result(evaluated.path)[key] == result(run)[key]


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
