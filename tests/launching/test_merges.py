"""Merges in the launcher, through the command line: needed runs, result, evaluation, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support import TINY, environment, newest_run, runner, train, weights

TASKS = "tasks=[segmentation,depth]"
MERGE = [*TINY, TASKS, "trainer.max_steps=4", "name=merge"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def base(place) -> Path:
    return train(place, *TINY, "trainer.max_steps=4", "name=base", "backbone.norm=group", "tasks=[normals,edge]")


@pytest.fixture(scope="module")
def merged(place, base) -> Path:
    train(place, *MERGE, "backbone.norm=group", f"init={base}", "merge=task_arithmetic", "merging.scales=[0,0.5,1]")
    return newest(place)


def newest(place: Path) -> Path:
    return max((p.parent for p in (place / "train" / "merge").glob("*-*/run.json")), key=lambda p: p.stat().st_ctime)


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_experts_are_needed_runs_and_the_base_is_where_they_start(merged, base, place):
    needs = json.loads((merged / "run.json").read_text())["needs"]
    assert [(n["role"], n["tasks"]) for n in needs] == [("expert", ["segmentation"]), ("expert", ["depth"])]
    for need in needs:
        expert = Path(need["path"])
        assert expert.parent.parent == place / "train" / "merge" / "expert"
        assert json.loads((expert / "run.json").read_text())["signature"] == need["signature"]


def test_the_result_says_what_is_left_of_the_experts(merged):
    found = result(merged)
    merge = found["merge"]
    assert [point["scale"] for point in merge["curve"]] == [0, 0.5, 1]
    assert merge["scale"] in (0, 0.5, 1)
    best = max(merge["curve"], key=lambda point: point["normalised"])
    assert merge["scale"] == best["scale"]
    for task, run in merge["experts"].items():
        assert found["experts"][task] == result(Path(run))["tasks"][task]
    name = found["headline"]["segmentation"]
    shares = found["tasks"]["segmentation"][name] / found["experts"]["segmentation"][name]
    assert merge["retained"]["segmentation"] == pytest.approx(shares)
    assert merge["normalised"] == pytest.approx(sum(merge["retained"].values()) / 2)
    assert found["diagnostics"]["vectors"]["norms"]["depth"] > 0
    for picture in ("cosines", "layers", "scale"):
        assert (merged / "diagnostics" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_merged_weights_are_the_sum_of_the_base_and_scaled_task_vectors(merged, base):
    found = result(merged)
    own, start = weights(merged, "best"), weights(base, "best")
    experts = [weights(Path(run), "best") for run in found["merge"]["experts"].values()]
    for name in (n for n in start if n.startswith("backbone.")):
        expected = start[name] + found["merge"]["scale"] * sum(e[name] - start[name] for e in experts)
        assert torch.allclose(own[name], expected, atol=1e-6), name
    for task, run in found["merge"]["experts"].items():
        head = {n: t for n, t in weights(Path(run), "best").items() if n.startswith(f"heads.{task}.")}
        assert head and all(torch.equal(own[n], t) for n, t in head.items())


def test_another_strategy_trains_no_expert_again_and_evaluates_by_itself(merged, place, base):
    before = sorted((place / "train").rglob("result.json"))
    other = ["backbone.norm=group", f"init={base}", "merge=output_ensemble"]
    done = runner("train", *MERGE, *other, f"output_dir={place}")
    assert done.returncode == 0, done.stderr
    assert "all are there" in done.stdout
    assert len(sorted((place / "train").rglob("result.json"))) == len(before) + 1
    run = newest(place)
    evaluated = runner("eval", str(run), f"output_dir={place}", "panels=0")
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads((newest_run(place) / "result.json").read_text())
    assert again["tasks"] == result(run)["tasks"]
    assert result(run)["merge"]["bytes"] > 1.9 * result(run)["merge"]["expert_bytes"]


def test_a_killed_merge_goes_on_and_ends_in_the_same_numbers(merged, place, base):
    command = [
        "train",
        *MERGE,
        "backbone.norm=group",
        f"init={base}",
        "merge=task_arithmetic",
        "merging.scales=[0,0.5,1]",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *command, f"output_dir={place}", f"run_dir={place / 'killed'}"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (place / "killed" / "metrics.jsonl").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "killed" / "result.json").exists()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the worker has a session of its own and is told by the kernel
        done = runner("resume", str(place / "killed"))
        if "another process" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert result(place / "killed")["tasks"] == result(merged)["tasks"]
    own, again = weights(merged, "best"), weights(place / "killed", "best")
    assert all(torch.equal(own[n], again[n]) for n in own)


def test_mistakes_are_told_before_anything_is_trained(place):
    done = runner(
        "train", *TINY, "tasks=[depth]", "merge=task_arithmetic", "finetune.heads=probe", f"output_dir={place}"
    )
    assert done.returncode == 2
    assert "two tasks or more" in done.stderr and "starts from scratch" in done.stderr
