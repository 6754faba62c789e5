"""From run directories to tables: what is a row, what is measured against what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runner.config.derive import on_tasks
from runner.errors import UserError
from runner.reporting.build import build
from runner.reporting.delta_m import RULES, delta_m
from runner.reporting.grid import make_columns
from runner.reporting.model import Report
from runner.reporting.notes import notes
from runner.reporting.read import load
from tests.reporting.synthetic import HEADLINE, TASKS, make_config, write_run

DIRECTIONS = {task: {m: d for m, (d, _, _) in metrics.items()} for task, metrics in TASKS.items()}


def report(*paths: Path, **options: object) -> Report:
    return build(load(list(paths)), **options)


def words(report: Report, number: int = 0) -> str:
    table = report.tables[number]
    return "\n".join(notes(table, make_columns(table, table.headlines, ["survey"]), ("*", "≈", "?")))


def value_of(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "result.json").read_text())["tasks"]


def test_rows_are_settings_with_their_seeds_collapsed(sweep):
    (table,) = report(sweep).tables
    assert [(row.kind, row.label, row.n) for row in table.rows] == [
        ("baseline", "single-task", 3),
        ("published", "published", 0),
        ("setting", "nash_mtl", 1),
        ("setting", "cagrad", 2),
        ("setting", "equal", 3),
    ]
    equal = table.rows[-1]
    runs = sorted(sweep.glob("jobs/00[012]-*"))
    miou = [value_of(run)["segmentation"]["miou"] for run in runs]
    assert equal.spreads["segmentation/miou"].mean == pytest.approx(np.mean(miou))
    assert equal.spreads["segmentation/miou"].std == pytest.approx(np.std(miou, ddof=1))
    assert equal.spreads["step"].mean == pytest.approx(120) and equal.spreads["parameters"].mean == 380000
    assert table.columns.names == ["weighting"]


def test_delta_m_is_measured_against_the_mean_of_the_baseline(sweep):
    (table,) = report(sweep).tables
    singles = [value_of(run) for run in (sweep.parents[1] / "train").glob("*/*")]
    zero = {
        task: {m: float(np.mean([v[task][m] for v in singles if task in v])) for m in metrics}
        for task, metrics in TASKS.items()
    }
    equal = table.rows[-1]
    runs = sorted(sweep.glob("jobs/00[012]-*"))
    for name in RULES:
        wanted = [delta_m(name, value_of(run), zero, DIRECTIONS, headlines=HEADLINE).value for run in runs]
        assert list(equal.samples[f"Δm/{name}"].values()) == pytest.approx(wanted)
    base = table.rows[0]
    assert base.spreads["Δm/survey"].mean == pytest.approx(0, abs=1e-9)
    assert base.spreads["Δm/survey"].std > 0


def test_single_task_runs_among_the_paths_are_the_baseline_and_no_rows(sweep):
    outputs = sweep.parents[1]
    (table,) = report(outputs).tables
    (alone,) = report(sweep).tables
    assert [row.label for row in table.rows] == [row.label for row in alone.rows]
    base = table.rows[0]
    assert base.spreads["parameters"].mean == 4 * 320000  # one model for each task
    assert len(base.runs) == 12


def test_recorded_numbers_are_enough_where_the_baselines_were_left_behind(sweep, tmp_path):
    copy = tmp_path / "copied"
    shutil.copytree(sweep, copy)
    for run in copy.glob("jobs/*/run.json"):
        info = json.loads(run.read_text())
        for need in info["needs"]:
            need["path"] = "/nowhere" + need["path"]
        run.write_text(json.dumps(info))
    here, there = report(sweep).tables[0], report(copy).tables[0]
    for mine, copied in zip(here.rows, there.rows, strict=True):
        assert mine.samples.get("Δm/survey") == pytest.approx(copied.samples.get("Δm/survey"))
    assert "wall" not in there.rows[0].samples and "wall" in here.rows[0].samples


def test_unfinished_runs_are_listed_with_their_cause(sweep):
    found = report(sweep)
    assert [(run.state, run.cause) for run in found.tables[0].unfinished] == [
        ("failed", "OutOfMemoryError: CUDA out of memory"),
        ("running", ""),
    ]
    assert [run.state for run in found.waiting] == ["waiting"] and not found.broken


def test_a_baseline_can_be_given(sweep, tmp_path):
    zero = {task: {m: end for m, (_, _, end) in metrics.items()} for task, metrics in TASKS.items()}
    (tmp_path / "numbers.json").write_text(json.dumps(zero))
    (table,) = report(sweep, baseline=str(tmp_path / "numbers.json")).tables
    run = next(sweep.glob("jobs/000-*"))
    wanted = delta_m("survey", value_of(run), zero, DIRECTIONS, headlines=HEADLINE).value
    assert table.rows[-1].samples["Δm/survey"][0] == pytest.approx(wanted)
    assert table.baseline == "the numbers in numbers.json" and table.rows[0].label == "numbers"
    (table,) = report(sweep, baseline=str(sweep.parents[1] / "train")).tables
    assert table.rows[0].n == 3 and "Δm/survey" in table.rows[-1].samples
    (table,) = report(sweep, baseline="none").tables
    assert not table.definitions and table.rows[0].kind == "published"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file or folder"), ("{", "cannot be read"), ("{}", "holds no numbers"), ("a: 3", "mapping of metrics")],
)
def test_a_baseline_that_is_none(sweep, tmp_path, content, message):
    path = tmp_path / "numbers.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        report(sweep, baseline=str(path))
    with pytest.raises(UserError, match="3 settings"):
        report(sweep, baseline=str(sweep))


def test_each_setting_has_the_baseline_of_its_own_heads(tmp_path):
    """Two head widths, two baselines: neither must be averaged into the other."""
    for width, gain in ((16, -0.5), (64, 0.0)):
        word = f"architecture.dense_head.channels={width}"
        write_run(tmp_path / f"joint-{width}", make_config([word]), [word], gain=gain)
        for task in TASKS:
            single = on_tasks(make_config([word]), [task], "single")
            write_run(tmp_path / f"{task}-{width}", single, [word], gain=gain)
    (table,) = report(tmp_path).tables
    assert sum(row.kind == "baseline" for row in table.rows) == 2
    for row in table.rows:
        if row.kind == "setting":
            assert abs(row.spreads["Δm/survey"].mean) < 5, "measured against the other one's baseline"
    assert not table.loose


def test_baselines_trained_under_other_settings_are_used_and_named(tmp_path):
    write_run(tmp_path / "joint", make_config(["optimizer.lr=0.1"]))
    for task in TASKS:
        write_run(tmp_path / task, on_tasks(make_config(), [task], "single"))
    found = report(tmp_path)
    assert found.tables[0].loose and "trained under other settings" in words(found)


def test_without_baselines_there_is_no_delta_m_and_a_word_on_it(tmp_path):
    write_run(tmp_path / "run", make_config())
    found = report(tmp_path)
    assert not found.tables[0].definitions and "no Δm" in words(found)


def test_runs_of_different_tasks_come_in_different_tables(tmp_path):
    write_run(tmp_path / "a", make_config())
    write_run(tmp_path / "b", make_config(["tasks=[segmentation,depth]"]))
    tables = report(tmp_path).tables
    assert sorted(table.title for table in tables) == [
        "segmentation, depth on rooms (test)",
        "segmentation, depth, normals, edge on rooms (test)",
    ]


def test_runs_of_different_splits_come_in_different_tables(tmp_path):
    write_run(tmp_path / "a", make_config())
    write_run(tmp_path / "b", make_config(["trainer.final_split=validation"]), extra={"split": "validation"})
    assert sorted(table.split for table in report(tmp_path).tables) == ["test", "validation"]
    assert [table.split for table in report(tmp_path, split="validation").tables] == ["validation"]


def test_evaluations_stand_beside_the_runs_they_looked_at(tmp_path):
    trained = write_run(tmp_path / "train", make_config(["weighting=cagrad"], seed=3), ["weighting=cagrad"])
    info = json.loads((trained / "run.json").read_text())
    request = {"run": str(trained), "checkpoint": "best", "split": "test", "output_dir": "outputs"}
    write_run(
        tmp_path / "eval", request, ["run=x"], verb="eval",
        extra={"signature": info["signature"], "run": str(trained)}, info={"seed": None},
    )  # fmt: skip
    (table,) = report(tmp_path).tables
    assert table.columns.names == ["verb", "checkpoint"]
    assert sorted(row.cells["verb"] for row in table.rows) == ["eval", "train"]


def test_published_numbers_are_a_row_of_their_own(sweep):
    (table,) = report(sweep).tables
    published = table.rows[1]
    assert published.spreads["segmentation/miou"].mean == 0.4081
    assert "depth/rmse" not in published.spreads and not published.verdicts


def test_marks_are_left_out_where_nobody_has_enough_seeds(sweep, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", make_config(seed=seed))
        write_run(tmp_path / f"b{seed}", make_config(["weighting=cagrad"], seed=seed), gain=0.1)
    found = report(tmp_path)
    marks = {verdict.mark for row in found.tables[0].rows for verdict in row.verdicts.values()}
    assert marks == {"best"} and "cannot be told from noise" in words(found)


def test_three_seeds_tell_a_large_difference(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", make_config(seed=seed))
        write_run(tmp_path / f"b{seed}", make_config(["weighting=cagrad"], seed=seed), gain=0.4)
    found = report(tmp_path)
    best, worse = found.tables[0].rows
    assert best.label == "cagrad" and best.rank == 1 and worse.rank == 2
    assert worse.verdicts["depth/rmse"].mark == "worse" and worse.verdicts["depth/rmse"].test == "paired"
    assert "only large differences" in words(found)


def test_a_metric_without_a_value_is_said(tmp_path):
    values = {t: {m: e for m, (_, _, e) in ms.items()} for t, ms in TASKS.items()}
    values["depth"]["rmse"] = None
    zero = {t: {m: e for m, (_, _, e) in ms.items()} for t, ms in TASKS.items()}
    write_run(tmp_path / "a", make_config(), values=values, extra={"baseline": zero}, rows=0)
    found = report(tmp_path)
    assert found.tables[0].undefined == ["depth/rmse"]
    assert "Δm is not defined" in words(found)


def test_damaged_runs_do_not_stop_the_others(sweep, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sweep, copy)
    broken = next(copy.glob("jobs/000-*"))
    (broken / "config.yaml").write_text("a: [")
    found = report(copy)
    assert [run.path for run in found.broken] == [broken]
    assert next(row for row in found.tables[0].rows if row.label == "equal").n == 2


def test_nothing_completed_yet(tmp_path):
    write_run(tmp_path / "run", make_config(), status="RUNNING")
    (table,) = report(tmp_path).tables
    assert not table.rows and [run.state for run in table.unfinished] == ["running"]
    assert table.title == "segmentation, depth, normals, edge on rooms (test)"


def test_one_run_says_what_its_own_result_says(tmp_path):
    """Against one seed of the baseline the report's Δm is the one in result.json."""
    zero = {task: {m: 1.1 * end for m, (_, _, end) in metrics.items()} for task, metrics in TASKS.items()}
    run = write_run(tmp_path / "run", make_config(baseline="auto"), extra={"baseline": zero}, rows=0)
    own = {name: delta_m(name, value_of(run), zero, DIRECTIONS, headlines=HEADLINE).value for name in RULES}
    (table,) = report(tmp_path).tables
    assert {name: table.rows[-1].samples[f"Δm/{name}"][0] for name in RULES} == pytest.approx(own)


def test_merges_without_a_mixture_are_rows_too(tmp_path):
    for scale in (0.3, 0.5):
        config = {"merge": {"_target_": "runner.merging.rules.TaskArithmetic", "scale": scale}, "models": ["a", "b"]}
        write_run(tmp_path / str(scale), config, [f"merge.scale={scale}"], verb="merge", rows=0, info={"seed": None})
    write_run(tmp_path / "train", make_config())
    merged = next(table for table in report(tmp_path).tables if not table.mixture)
    assert merged.columns.names == ["merge.scale"] and [row.n for row in merged.rows] == [1, 1]
    assert merged.title == "segmentation, depth, normals, edge"


def test_merged_runs_are_measured_against_their_experts(tmp_path):
    """Experts are single-task runs under the same settings: what a merge loses is its Δm."""
    target = {"_target_": "runner.merging.rules.TaskArithmetic"}
    needs = []
    for task in TASKS:
        config = on_tasks(make_config(), [task], "expert")
        expert = write_run(tmp_path / "experts" / task, config, rows=0)
        signature = json.loads((expert / "run.json").read_text())["signature"]
        needs.append({"role": "expert", "tasks": [task], "path": str(expert), "signature": signature})
    merged = make_config(merge=target, merging={"examples": 400})
    write_run(tmp_path / "merged", merged, gain=-0.1, rows=0, info={"needs": needs})
    (table,) = report(tmp_path / "merged").tables
    assert table.rows[0].kind == "baseline" and len(table.rows[0].runs) == 4
    assert table.rows[1].spreads["Δm/survey"].mean == pytest.approx(-10, abs=2)
    assert not table.loose
