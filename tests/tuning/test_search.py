"""The search against a pool that plays runs instead of starting them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from runner.cli.search_run import Asked
from runner.config.schema import TuneConfig
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.files import read_json, write_json
from runner.launching.rundir import RunDirectory
from runner.tuning import search as searching
from runner.tuning.ledger import failed
from runner.tuning.objective import Objective
from runner.tuning.search import Search
from runner.tuning.space import read_space
from runner.tuning.study import JOURNAL, make_pruner, make_sampler, mend, open_study
from runner.tuning.summary import best_trials, counts, importances, mean_ranks, own, summarise, table, write_sweep

LR = "lr=tag(log,interval(1e-5,1e-1))"
STEPS = (4, 8, 12)
TRAINER = {"eval_every": 4, "max_steps": 12}


class Killed(BaseException):
    """The process is gone."""


class PlayedJob:
    """As `runner.launching.pool.Job`, as far as the search looks at it."""

    def __init__(self, config: dict, path: Path) -> None:
        self.config, self.path = config, path
        self.code: int | None = None
        self.message = ""
        self.running = False
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class PlayedPool:
    """One evaluation of every running job per step; depth/rmse = 1 + (log10 lr + 3)², miou falls with lr.

    `how`: text of the trial's overrides → "fail", "undefined", "outside" (stopped from outside) or "hang".
    """

    parting, outlives = "", False

    def __init__(self, how: dict[str, str] | None = None, kill_after: int | None = None) -> None:
        self.how, self.kill_after = how or {}, kill_after
        self.open: list[PlayedJob] = []
        self.begun: list[tuple[str, int]] = []
        self.steps = self.most = 0

    def submit(self, config: dict, path: Path, argv: list[str], **more) -> PlayedJob:
        job = PlayedJob(config, path)
        if not (path / "run.json").exists():
            RunDirectory.claim(config | {"run_dir": str(path)}, "train", argv, **more)
        self.open.append(job)
        return job

    def step(self, timeout: float) -> list[PlayedJob]:
        self.steps += 1
        if self.kill_after is not None and self.steps > self.kill_after:
            raise Killed
        self.most = max(self.most, len(self.open))
        for job in self.open:
            self.advance(job)
        ended = [job for job in self.open if job.code is not None]
        self.open = [job for job in self.open if job.code is None]
        return ended

    def stop(self) -> None:
        for job in self.open:
            job.stop()

    def advance(self, job: PlayedJob) -> None:
        run = RunDirectory(job.path)
        if job.stopped and not job.running:  # withdrawn
            job.code, job.message = EXIT_STOPPED, "not started"
            return
        at = job.path / "at"
        done = int(at.read_text()) if at.exists() else 0
        if not job.running:
            job.running = True
            self.begun.append((job.path.name, done))
            run.begin_attempt(done)
        how = self.how.get(job.config["words"], "")
        if how == "fail":
            self.end(job, "FAILED", EXIT_FAILED, "the loss is not finite")
        elif job.stopped or how == "outside":
            self.end(job, "STOPPED", EXIT_STOPPED, "stopped by SIGTERM")
        elif done < STEPS[-1]:
            step = done + 4
            x = math.log10(job.config["lr"])
            metrics = {"depth": {"rmse": 1 + (x + 3) ** 2 + 12 - step}, "segmentation": {"miou": 0.5 - 0.05 * x}}
            with open(job.path / "metrics.jsonl", "a") as file:
                for task, values in metrics.items():
                    for metric, value in values.items():
                        row = {"step": step, "split": "validation", "task": task, "metric": metric, "value": value}
                        file.write(json.dumps(row) + "\n")
                file.write(json.dumps({"step": step, "split": "train", "task": "", "metric": "lr", "value": 0}) + "\n")
            at.write_text(str(step))
            if step == STEPS[-1]:
                if how == "undefined":
                    metrics["depth"]["rmse"] = None
                result = {
                    "validation": metrics,
                    "headline": {"depth": "rmse", "segmentation": "miou"},
                    "directions": {"depth": {"rmse": "down"}, "segmentation": {"miou": "up"}},
                }
                write_json(job.path / "result.json", result)
                self.end(job, "COMPLETED", EXIT_DONE, "")
        elif (job.path / "result.json").exists():
            job.code = EXIT_DONE

    def end(self, job: PlayedJob, status: str, code: int, message: str) -> None:
        RunDirectory(job.path).end_attempt(status, message=message)
        job.code, job.message = code, message


class Bench:
    """A search in a folder, to be run again and again."""

    def __init__(
        self, folder: Path, lines: list[str], targets=(("depth", "rmse"),), jobs=1, keep_going=True, **settings
    ) -> None:
        self.more = {"jobs": jobs, "keep_going": keep_going}
        self.folder, self.lines, self.targets = folder, lines, list(targets)
        self.settings = TuneConfig(**{"startup": 3, **settings})
        self.told: list[str] = []
        folder.mkdir(exist_ok=True)

    def compose(self, overrides: list[str]) -> dict:
        values = dict(line.split("=") for line in overrides)
        if values.get("method") == "impossible":
            raise UserError("the method is impossible")
        lr = float(values.get("lr", 1e-3))
        method = "a" if values.get("method") == "also_a" else values.get("method")
        # `words` steers the played pool and is no part of the signature
        return {"name": "n", "seed": 0, "lr": lr, "method": method, "launch": {}, "tracking": " "} | {
            "words": " ".join(overrides)
        }

    def run(self, pool: PlayedPool, stops: list[int] | None = None) -> int:
        space, problems = read_space(self.lines)
        assert problems == []
        objective = Objective("metrics" if self.targets else "relative", self.targets)
        pruner = make_pruner(self.settings.pruner, self.settings.startup, {"trainer": TRAINER})
        study = open_study(self.folder, "s", objective.count, pruner)

        budget = Asked(self.folder, space, objective, self.settings, None, [], {}).budget

        def keep() -> None:
            write_sweep(self.folder, study, space, objective, self.settings, ["tune"], "n")

        self.search = Search(
            self.folder, study, space, objective, self.settings, budget=budget, compose=self.compose,
            argv=lambda overrides: ["train", *overrides], pool=pool, tell=self.told.append, keep=keep, **self.more,
        )  # fmt: skip
        self.search.runs.submit = lambda config, path, argv, number: pool.submit(
            config, path, argv, sweep=self.folder.name, trial=number
        )
        return self.search.run(stops if stops is not None else [])

    def states(self) -> list[str]:
        """Of every trial; "AGAIN" of one that failed and is left to the next call."""
        again = [failed(t) and t.state == TrialState.RUNNING for t in self.search.trials()]
        return ["AGAIN" if a else t.state.name for a, t in zip(again, self.search.trials(), strict=True)]

    def overrides(self) -> list[list[str]]:
        return [t.user_attrs.get("overrides") for t in self.search.trials()]


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    monkeypatch.setattr(searching, "POLL_S", -1.0)
    monkeypatch.setattr("runner.config.signature.NOT_WEIGHTS", frozenset({"words", "launch", "tracking", "run_dir"}))


# ---- what is tried ---------------------------------------------------------------------------------------------------


def test_tpe_learns(tmp_path):
    bench = Bench(tmp_path, [LR], trials=25, startup=8)
    assert bench.run(PlayedPool()) == 0
    values = [t.values[0] for t in bench.search.trials()]
    assert len(values) == 25 and sum(values[-8:]) < sum(values[:8])
    assert best_trials(bench.search.study)[0].values[0] == min(values) < 1.05


def test_trials_do_not_depend_on_where_the_search_was_cut(tmp_path):
    whole = Bench(tmp_path / "whole", [LR, "method=a,b"], trials=9)
    whole.run(PlayedPool())
    for count in (2, 5, 9):
        parts = Bench(tmp_path / "parts", [LR, "method=a,b"], trials=count)
        parts.run(PlayedPool())
    assert parts.overrides() == whole.overrides()
    other = Bench(tmp_path / "other", [LR, "method=a,b"], trials=9, seed=1)
    other.run(PlayedPool())
    assert other.overrides() != whole.overrides()


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2"])
def test_a_sampler_is_a_function_of_seed_and_number(name):
    import optuna

    def draws(seed: int, numbers: range) -> list[float]:
        study = optuna.create_study()
        return [
            make_sampler(name, seed, n, 4).sample_independent(
                study, study.ask()._cached_frozen_trial, "x", optuna.distributions.FloatDistribution(0, 1)
            )
            for n in numbers
        ]

    assert draws(0, range(5)) == draws(0, range(5)) != draws(1, range(5))
    assert len(set(draws(0, range(5)))) == 5


def test_a_grid_is_covered_once_in_order(tmp_path):
    bench = Bench(tmp_path, ["lr=1e-4,1e-3", "method=a,b"], sampler="grid")
    assert bench.run(PlayedPool()) == 0 and bench.run(PlayedPool()) == 0
    assert [" ".join(o) for o in bench.overrides()] == [
        "lr=0.0001 method=a", "lr=0.0001 method=b", "lr=0.001 method=a", "lr=0.001 method=b",
    ]  # fmt: skip


def test_a_configuration_that_was_tried_is_answered_from_its_result(tmp_path):
    pool = PlayedPool()
    bench = Bench(tmp_path, ["lr=1e-4,1e-3"], sampler="random", trials=10)
    assert bench.run(pool) == 0
    trials = bench.search.trials()
    again = [t for t in trials if "same_as" in t.user_attrs]
    assert len(pool.begun) == 2 and len(own(trials)) == 2 and bench.search.budget == 2
    assert all(t.values == trials[t.user_attrs["same_as"]].values for t in again)
    assert len(read_json(tmp_path / "sweep.json")["jobs"]) == 2


def test_other_words_for_the_same_configuration_are_not_run(tmp_path):
    pool = PlayedPool()
    bench = Bench(tmp_path, ["method=a,also_a,b"], sampler="grid")
    assert bench.run(pool) == 0
    first, second, _ = bench.search.trials()
    assert second.user_attrs["same_as"] == 0 and second.values == first.values and len(pool.begun) == 2


def test_a_repetition_of_a_trial_under_way_waits_for_it(tmp_path):
    pool = PlayedPool()
    bench = Bench(tmp_path, ["method=a,also_a"], sampler="grid", jobs=2)
    assert bench.run(pool) == 0
    assert bench.states() == ["COMPLETE", "COMPLETE"] and len(pool.begun) == 1


def test_so_many_at_a_time(tmp_path):
    for jobs in (1, 3):
        pool = PlayedPool()
        Bench(tmp_path / str(jobs), [LR], trials=6, jobs=jobs).run(pool)
        assert pool.most == jobs


def test_the_mapping_is_on_disk_before_the_run_is(tmp_path):
    class Looking(PlayedPool):
        def submit(self, config, path, argv, **more):
            (job,) = [j for j in read_json(tmp_path / "sweep.json")["jobs"] if tmp_path / j["directory"] == path]
            assert not path.exists() and argv == ["train", *job["overrides"]]
            assert more == {"sweep": tmp_path.name, "trial": job["number"]}
            assert json.dumps(job["directory"]) in (tmp_path / JOURNAL).read_text()
            return super().submit(config, path, argv, **more)

    assert Bench(tmp_path, [LR], trials=3).run(Looking()) == 0


# ---- how trials end --------------------------------------------------------------------------------------------------


def test_failures_are_told_and_do_not_end_the_search(tmp_path):
    bench = Bench(tmp_path, ["method=a,b,c,impossible,e"], sampler="grid")
    pool = PlayedPool({"method=b": "fail", "method=c": "undefined"})
    assert bench.run(pool) == 0
    assert bench.states() == ["COMPLETE", "AGAIN", "FAIL", "FAIL", "COMPLETE"]
    words = [t.user_attrs.get("message") for t in bench.search.trials()]
    assert words[1] == "the loss is not finite" and "depth/rmse is undefined" in words[2]
    assert words[3] == "the method is impossible"


def test_when_all_fail_the_search_ends(tmp_path):
    bench = Bench(tmp_path, ["method=a,b,c,d,e"], sampler="grid")
    assert bench.run(PlayedPool({f"method={m}": "fail" for m in "abcde"})) == 1
    assert bench.states() == ["AGAIN"] * 3 and "the first 3 trials all failed" in bench.search.trouble


def test_a_failed_trial_is_tried_again_by_the_next_call_as_often_as_asked(tmp_path):
    lines = ["method=a,b,also_a"]
    bench, pool = Bench(tmp_path, lines, sampler="grid", retries=2), PlayedPool({"method=b": "fail"})
    assert bench.run(pool) == 0 and bench.states() == ["COMPLETE", "AGAIN", "COMPLETE"]
    assert "trial 1 failed: the loss is not finite (the next call tries it again)" in bench.told
    shown = summarise(bench.search.study, bench.search.objective, 0.0)["trials"][1]
    assert (shown["state"], shown["failures"], shown["message"]) == ("FAIL", 1, "the loss is not finite")
    assert counts(bench.search.trials()) == "1 completed, 1 failed, 1 answered from an earlier one"
    assert bench.run(pool) == 0 and bench.states()[1] == "AGAIN"
    assert bench.run(pool) == 0 and bench.states()[1] == "FAIL"
    begun = list(pool.begun)
    assert bench.run(pool) == 0 and pool.begun == begun  # its three attempts were the last
    assert [name[:3] for name, _ in begun] == ["000", "001", "001", "001"]
    # as of a sweep's jobs: what has failed once may succeed
    other = Bench(tmp_path / "other", lines, sampler="grid")
    assert other.run(PlayedPool({"method=b": "fail"})) == 0 and other.run(PlayedPool()) == 0
    assert other.states() == ["COMPLETE"] * 3 and other.search.trials()[1].user_attrs["message"] == ""


def test_what_repeats_a_failed_trial_is_answered_with_it(tmp_path):
    bench = Bench(tmp_path, ["method=a,also_a,b"], sampler="grid")
    assert bench.run(PlayedPool({"method=a": "fail"})) == 0
    assert bench.states() == ["AGAIN", "RUNNING", "COMPLETE"]
    assert bench.run(PlayedPool()) == 0 and bench.states() == ["COMPLETE"] * 3


def test_without_retries_a_failure_is_the_end_of_it(tmp_path):
    bench = Bench(tmp_path, ["method=a,b"], sampler="grid", retries=0)
    assert bench.run(PlayedPool({"method=b": "fail"})) == 0 and bench.states() == ["COMPLETE", "FAIL"]


def test_without_keep_going_the_first_failure_ends_the_search(tmp_path):
    bench = Bench(tmp_path, ["method=a,b,c"], sampler="grid", keep_going=False)
    assert bench.run(PlayedPool({"method=b": "fail"})) == 1
    assert bench.states() == ["COMPLETE", "AGAIN"] and "keep_going=false" in bench.search.trouble


def test_a_lagging_trial_is_pruned_and_its_run_says_so(tmp_path):
    bench = Bench(tmp_path, ["lr=1e-3,2e-3,5e-4,0.05,0.06"], sampler="grid", pruner="median", startup=6)
    pool = PlayedPool()
    assert bench.run(pool) == 0
    assert bench.states() == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    cut = bench.search.trials()[3]
    run = RunDirectory(tmp_path / cut.user_attrs["directory"])
    assert run.info()["status"] == "STOPPED" and run.info()["pruned"] == {"step": 4, "by": "median"}
    assert "pruned by `runner tune`" in run.info()["attempts"][-1]["message"]
    assert run.result() is None
    begun = len(pool.begun)
    assert bench.run(pool) == 0 and len(pool.begun) == begun  # not gone on with


def test_nothing_is_pruned_without_a_pruner(tmp_path):
    bench = Bench(tmp_path, ["lr=1e-3,2e-3,5e-4,0.05,0.06"], sampler="grid")
    assert bench.run(PlayedPool()) == 0 and bench.states() == ["COMPLETE"] * 5


def test_hyperband_prunes_a_bad_trial_among_good_ones(tmp_path):
    values = ",".join(["1e-3", *(f"{v}e-4" for v in range(5, 10)), *(f"0.0{v}" for v in range(3, 10))])
    bench = Bench(tmp_path, [f"lr={values}"], sampler="grid", pruner="hyperband")
    assert bench.run(PlayedPool()) == 0
    states = bench.states()
    assert "PRUNED" in states[6:] and states[0] == "COMPLETE"
    assert best_trials(bench.search.study)[0].user_attrs["overrides"] == ["lr=0.001"]


# ---- stops and kills -------------------------------------------------------------------------------------------------


def test_a_stop_is_resumable(tmp_path):
    bench, pool = Bench(tmp_path, [LR], trials=3, jobs=2), PlayedPool()
    stops: list[int] = []
    pool_step = pool.step

    def step(timeout):
        if pool.steps == 1:
            stops.append(2)
        return pool_step(timeout)

    pool.step = step
    assert bench.run(pool, stops) == EXIT_STOPPED
    assert bench.states() == ["RUNNING", "RUNNING"]
    again = PlayedPool()
    assert bench.run(again) == 0
    assert bench.states() == ["COMPLETE"] * 3
    assert [at for _, at in again.begun] == [4, 4, 0] or [at for _, at in again.begun] == [8, 8, 0]


def test_a_trial_stopped_from_outside_is_left_for_the_next_call(tmp_path):
    bench = Bench(tmp_path, ["method=a,b"], sampler="grid")
    assert bench.run(PlayedPool({"method=a": "outside"})) == EXIT_STOPPED
    assert bench.states() == ["RUNNING", "COMPLETE"]
    assert bench.run(PlayedPool()) == 0 and bench.states() == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_kills_at_every_moment_lose_and_repeat_nothing(tmp_path, jobs):
    whole = Bench(tmp_path / "whole", [LR, "method=a,b"], trials=5, jobs=jobs)
    whole.run(PlayedPool())
    bench = Bench(tmp_path / "killed", [LR, "method=a,b"], trials=5, jobs=jobs)
    begun: list[tuple[str, int]] = []
    for _ in range(60):
        pool = PlayedPool(kill_after=1)
        try:
            code = bench.run(pool)
            break
        except Killed:
            continue
        finally:
            begun += pool.begun
    assert code == 0 and bench.states() == ["COMPLETE"] * 5
    if jobs == 1:
        assert bench.overrides() == whole.overrides()
        assert [t.values for t in bench.search.trials()] == [t.values for t in whole.search.trials()]
    assert len(begun) == len(set(begun))  # no step of any run twice
    assert sorted(name for name, at in begun if at == 0) == sorted(
        Path(t.user_attrs["directory"]).name for t in bench.search.trials()
    )


def test_a_kill_between_the_decision_to_prune_and_the_end_of_the_run(tmp_path):
    bench = Bench(tmp_path, ["lr=1e-3,2e-3,5e-4,0.05"], sampler="grid", pruner="median", startup=6)

    class Dying(PlayedPool):
        def step(self, timeout):
            if any(job.stopped for job in self.open):
                raise Killed
            return super().step(timeout)

    with pytest.raises(Killed):
        bench.run(Dying())
    pool = PlayedPool()
    assert bench.run(pool) == 0 and pool.begun == []
    assert bench.states() == ["COMPLETE"] * 3 + ["PRUNED"]
    run = RunDirectory(tmp_path / bench.search.trials()[3].user_attrs["directory"])
    assert run.info()["status"] == "STOPPED" and run.info()["pruned"]["step"] == 4


def test_a_torn_journal_is_mended_wherever_it_was_cut(tmp_path):
    bench = Bench(tmp_path / "a", [LR], trials=3)
    bench.run(PlayedPool())
    content = (tmp_path / "a" / JOURNAL).read_bytes()
    for cut in range(len(content) // 2, len(content), 97):
        (tmp_path / JOURNAL).write_bytes(content[:cut])
        mend(tmp_path / JOURNAL)
        kept = (tmp_path / JOURNAL).read_bytes()
        assert content.startswith(kept) and kept.endswith(b"\n") and cut - len(kept) < 2000
    # a kill inside `ask`, when a trial has a number and no parameters yet
    lines = content.splitlines(keepends=True)
    born = [i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 4]  # trials are created
    (tmp_path / "a" / JOURNAL).write_bytes(b"".join(lines[: born[2] + 1]) + b'{"op_code": 5, "par')
    assert bench.run(PlayedPool()) == 0
    assert bench.states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_a_front_is_the_front_and_ranks_are_ranks(tmp_path):
    bench = Bench(tmp_path, [LR], [("depth", None), ("segmentation", None)], trials=10, sampler="random")
    assert bench.run(PlayedPool()) == 0
    study, objective = bench.search.study, bench.search.objective
    points = {t.number: objective.natural(t.user_attrs["metrics"]) for t in bench.search.trials()}
    front = {
        n
        for n, (rmse, miou) in points.items()
        if not any(r <= rmse and m >= miou and (r, m) != (rmse, miou) for r, m in points.values())
    }
    assert {t.number for t in best_trials(study)} == front and 1 < len(front) < 10
    ranks = mean_ranks(bench.search.trials(), objective)
    by_rmse = sorted(points, key=lambda n: points[n][0])
    by_miou = sorted(points, key=lambda n: -points[n][1])
    for number in points:
        assert ranks[number] == (by_rmse.index(number) + by_miou.index(number)) / 2 + 1
    headers, rows = table(study, objective, bench.search.space)
    assert headers == ["trial", "depth/rmse ↓", "segmentation/miou ↑", "mean rank", "lr"]
    assert [row[0].endswith("*") for row in rows] == [True] * len(front) + [False] * (10 - len(front))


def test_importance_finds_what_matters(tmp_path):
    bench = Bench(tmp_path, [LR, "method=a,b"], trials=16, sampler="random")
    assert importances(open_study(tmp_path, "s", 1, make_pruner("none", 1, {"trainer": TRAINER}))) == {}
    bench.run(PlayedPool())
    shares = importances(bench.search.study)
    assert list(shares) == ["lr", "method"] and shares["lr"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    found = summarise(bench.search.study, bench.search.objective, 12.34, shares)
    assert found["importance"] == shares and found["elapsed_s"] == 12.3 and found["better"] == ["lower"]
    assert [t["state"] for t in found["trials"]] == [TrialState.COMPLETE.name] * 16
    assert found["trials"][found["best"][0]]["values"][0] == min(t["values"][0] for t in found["trials"])


def test_the_relative_objective_is_zero_for_the_first_trial(tmp_path):
    bench = Bench(tmp_path, ["lr=1e-4,1e-3"], [], sampler="grid")
    assert bench.run(PlayedPool()) == 0
    found = summarise(bench.search.study, bench.search.objective, 0.0)
    assert found["objective"] == ["relative change %"] and found["trials"][0]["values"] == [0.0]
    # rmse 2 → 1: +50 %, miou 0.7 → 0.65: -7.14 %
    assert found["trials"][1]["values"][0] == pytest.approx((50 - 100 * 0.05 / 0.7) / 2)
