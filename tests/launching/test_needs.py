"""Baselines are trained once, found again, continued after a stop, and Δm is what the numbers give."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from runner.files import write_json
from runner.launching.locks import hold
from runner.launching.needs import Need, ensure, experts, find, needs, unfinished
from runner.launching.rundir import LOCK
from runner.launching.schedule import NeededJob
from tests.support import TINY, runner

BASE = [*TINY, "tasks=[depth,edge]", "trainer.max_steps=2", "trainer.eval_every=2"]


def config(output: Path, split: str | None = "test") -> dict[str, Any]:
    return {"mixture": {"tasks": {"depth": {}}}, "trainer": {"final_split": split}, "output_dir": str(output)}


def fake(output: Path, need: Need, status: str = "COMPLETED", split: str = "test", where: str = "train/x") -> Path:
    """A run directory with the need's signature."""
    name = f"20260101T000000Z-{need.signature}-{len(list(output.rglob('run.json'))):04x}"
    path = output / where / (name if where.startswith("train") else f"001-{need.signature}")
    path.mkdir(parents=True)
    write_json(path / "run.json", {"status": status, "signature": need.signature})
    if status == "COMPLETED":
        write_json(path / "result.json", {"split": split, "tasks": {"depth": {"rmse": 1.0}}})
    return path


@pytest.fixture
def need(tmp_path: Path) -> Need:
    return Need.of("baseline", config(tmp_path))


@pytest.mark.parametrize("where", ["train/x", "train/deep/er/still", "sweeps/some/jobs"])
def test_found_by_signature_wherever_runs_lie(tmp_path: Path, need: Need, where: str) -> None:
    assert find(need) is None
    path = fake(tmp_path, need, where=where)
    assert find(need) == path


def test_only_whole_runs_on_the_same_split_count(tmp_path: Path, need: Need) -> None:
    fake(tmp_path, need, "FAILED")
    fake(tmp_path, need, split="validation")
    assert find(need) is None
    stopped = fake(tmp_path, need, "STOPPED")
    assert unfinished(need) == stopped
    damaged = fake(tmp_path, need)
    (damaged / "run.json").write_text("{")
    assert find(need) is None


def test_two_that_need_the_same_run_train_it_once(tmp_path: Path, need: Need) -> None:
    trained = []

    def train(wanted: Need, path: Path | None) -> int:
        trained.append(wanted)
        time.sleep(0.2)
        fake(tmp_path, wanted)
        return EXIT_DONE

    found: list[dict[str, Path]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure([need], train, lambda text: None)[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert found[0] == found[1] == {need.signature: find(need)}


def test_a_run_that_somebody_started_by_hand_is_waited_for(tmp_path: Path, need: Need) -> None:
    """It is no need to them, so only the lock in its directory tells."""
    path, said = fake(tmp_path, need, "RUNNING"), []
    lock = hold(path / LOCK)
    assert lock is not None
    job = NeededJob(replace(need, config=need.config | {"name": "x", "seed": 0}), ["train"])
    assert job.open() is None and job.elsewhere and not job.ended

    def complete() -> None:
        write_json(path / "run.json", {"status": "COMPLETED", "signature": need.signature})
        write_json(path / "result.json", {"split": "test", "tasks": {"depth": {"rmse": 1.0}}})
        lock.close()

    timer = threading.Timer(0.3, complete)
    timer.start()
    paths, code = ensure([need], lambda wanted, where: pytest.fail("trained twice"), said.append)
    assert (paths, code) == ({need.signature: path}, EXIT_DONE)
    assert said == [f"waiting for {path}, where another process trains the {need}"]
    assert job.open() is None and job.ended and job.skipped and job.path == path


def test_a_failed_baseline_does_not_stop_the_others_and_a_failed_expert_does(tmp_path: Path) -> None:
    def plan(role: str) -> list[Need]:
        return [Need.of(role, config(tmp_path) | {"seed": seed}) for seed in (1, 2)]  # type: ignore[arg-type]

    def failing(wanted: Need, path: Path | None) -> int:
        asked.append(wanted)
        return code

    for role, code, count in (("baseline", EXIT_FAILED, 2), ("baseline", EXIT_STOPPED, 1), ("expert", EXIT_FAILED, 1)):
        asked: list[Need] = []
        assert ensure(plan(role), failing, lambda text: None) == ({}, code)
        assert len(asked) == count


def test_no_baselines_where_there_is_nothing_to_compare() -> None:
    one = {"baseline": "auto", "mixture": {"tasks": {"depth": {}}}}
    two = {"baseline": None, "mixture": {"tasks": {"depth": {}, "edge": {}}}}
    assert needs(one) == [] == needs(two)


def test_experts_apart_have_seeds_of_their_own() -> None:
    words = ["+experiment=demo", "merge=average", "seed=5"]
    together, apart = (experts(finalize(compose("train", [*words, *more]))) for more in ([], ["merging.apart=true"]))
    assert {n.config["seed"] for n in together} == {5}
    seeds = [n.config["seed"] for n in apart]
    assert len({*seeds, 5}) == len(seeds) + 1 and len({n.signature for n in apart}) == len(apart)


@pytest.mark.slow
def test_a_run_with_baselines_from_the_command_line(tmp_path: Path) -> None:
    first = runner("train", *BASE, "baseline=auto", "weighting=si", f"output_dir={tmp_path}")
    assert first.returncode == 0, first.stderr
    assert "2 runs are needed (baseline of depth, baseline of edge): 2 to train" in first.stdout
    second = runner("train", *BASE, "baseline=auto", "weighting=pcgrad", f"output_dir={tmp_path}")
    assert "all are there" in second.stdout
    assert "Δm against single-task runs" in second.stdout
    assert len(list(tmp_path.glob("train/*/single/*/*/result.json"))) == 2
    path = max(tmp_path.glob("train/*/2*/result.json"), key=lambda p: p.stat().st_mtime)
    result = json.loads(path.read_text())
    alone = json.loads(next(tmp_path.glob("train/*/single/depth/*/result.json")).read_text())
    assert result["baseline"]["depth"] == {k: v for k, v in alone["tasks"]["depth"].items() if v is not None}
    # By hand: survey counts rmse of depth (down) and, edge having no metric of its list, its headline (up).
    headline = result["headline"]["edge"]
    depth, edge = (
        (result["tasks"][t][m], result["baseline"][t][m]) for t, m in (("depth", "rmse"), ("edge", headline))
    )
    by_hand = 100 * ((depth[1] - depth[0]) / depth[1] + (edge[0] - edge[1]) / edge[1]) / 2
    assert result["delta_m"]["survey"] == pytest.approx(by_hand)
    info = json.loads((path.parent / "run.json").read_text())
    assert [need["tasks"] for need in info["needs"]] == [["depth"], ["edge"]]
    # Given numbers need no run.
    shutil.rmtree(path.parents[1] / "single")
    given = runner("train", *BASE, f"baseline={path}", f"output_dir={tmp_path}")
    assert given.returncode == 0, given.stderr
    assert f"Δm against {path}" in given.stdout
