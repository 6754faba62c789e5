"""Merges in a report: measured between base and experts, beside joint training of the same settings and seed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from runner.reporting import markup, page
from runner.reporting.build import build
from runner.reporting.grid import make_columns
from runner.reporting.model import Report, Row
from runner.reporting.notes import notes
from runner.reporting.read import load
from tests.reporting.synthetic import make_config, write_run

TASKS = ("segmentation", "edge")
BASE, EXPERTS = {0: (0.4, 0.2), 1: (0.5, 0.3)}, {0: (0.8, 0.6), 1: (0.9, 0.5)}


def values(pair: tuple[float, float], metric: str = "miou") -> dict:
    return {task: {"loss": 1.0, metric: value} for task, value in zip(TASKS, pair, strict=True)}


def write(folder: Path, merge: str, seed: int, pair: tuple[float, float], *more: str, size: int = 100, **extra) -> Path:
    config = make_config([f"merge={merge}", f"seed={seed}", *more], tasks=list(TASKS))
    found: dict = {
        "headline": dict.fromkeys(TASKS, "miou"),
        "directions": {task: {"miou": "up"} for task in TASKS},
    }
    if merge != "none":
        names = {task: f"somewhere/{task}" for task in TASKS}
        found |= {
            "base": values(BASE[seed]), "experts": values(EXPERTS[seed]),
            "merge": {"experts": names, "bytes": size, "model_bytes": 100, "expert_bytes": 90},
        }  # fmt: skip
    run = folder / f"{len(list(folder.glob('*'))):03}"
    argv = [f"merge={merge}", f"seed={seed}", *more]
    return write_run(run, config, argv, values=values(pair), extra=found | extra, rows=0, tasks=TASKS)


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed in (0, 1):
        write(tmp_path, "average", seed, (0.6, 0.4))
        write(tmp_path, "emr", seed, (0.7, 0.5), size=220)
        write(tmp_path, "none", seed, (0.8, 0.5))
    return tmp_path


def report(folder: Path, **options) -> Report:
    return build(load([folder]), **options)


def row(report: Report, label: str) -> Row:
    return next(row for row in report.tables[0].rows if row.label == label)


def test_merges_and_joint_training_are_measured_between_base_and_experts(runs):
    found = report(runs)
    assert [(r.kind, r.label, r.n) for r in found.tables[0].rows] == [
        ("between", "base", 2), ("between", "experts", 2),
        ("setting", "none", 2), ("setting", "emr", 2), ("setting", "average", 2),
    ]  # fmt: skip
    average = row(found, "average").samples
    assert average["merge/mean"] == {0: pytest.approx(0.5), 1: pytest.approx(0.5)}
    assert average["merge/normalised"] == {
        0: pytest.approx((0.6 / 0.8 + 0.4 / 0.6) / 2),
        1: pytest.approx((0.6 / 0.9 + 0.4 / 0.5) / 2),
    }
    assert average["merge/gap"] == {0: pytest.approx(0.2 / 0.4), 1: pytest.approx(0.1 / 0.3)}
    joint, emr = row(found, "none").samples, row(found, "emr").samples
    assert joint["merge/gap"][0] == pytest.approx((1.3 - 0.6) / (1.4 - 0.6))
    assert joint["merge/bytes"] == {0: 1.0, 1: 1.0} and emr["merge/bytes"] == {0: 2.2, 1: 2.2}
    base, experts = row(found, "base"), row(found, "experts")
    assert base.spreads["merge/gap"].mean == 0 and experts.spreads["merge/gap"].mean == 1
    assert experts.spreads["merge/bytes"].mean == 2 and experts.spreads["merge/mean"].mean == pytest.approx(0.7)
    assert row(found, "none").verdicts["merge/mean"].mark == "best" and "merge/mean" not in experts.verdicts


def test_columns_come_first_and_are_explained(runs):
    (table,) = report(runs).tables
    columns = make_columns(table, table.headlines, ["survey"])
    assert [c.head for c in columns[:6]] == ["merge", "n", "mean", "of experts", "of gap", "stored"]
    told = "\n".join(notes(table, columns, ("*", "≈", "?")))
    assert "of gap: (merged - base) / (experts - base)" in told and "no Δm" not in told
    lines = list(csv.DictReader(io.StringIO(markup.comma_separated(report(runs), lambda t: t.headlines))))
    assert float(next(x for x in lines if x["setting"] == "emr")["merge/mean"]) == pytest.approx(0.6)
    html = page.render(report(runs))
    content = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert content["tables"][0]["merges"][3][0] == "merge/bytes"


def test_other_experts_measure_their_own_merges_only(runs):
    write(runs, "average", 0, (0.6, 0.5), "optimizer.lr=0.01", experts=values((0.7, 0.5)))
    found = report(runs)
    labels = [r.label for r in found.tables[0].rows if r.kind == "between"]
    assert labels == ["base", "experts", "base", "experts"]
    other = next(r for r in found.tables[0].rows if "0.01" in r.cells.values() and r.kind == "setting")
    assert other.samples["merge/gap"][0] == pytest.approx((1.1 - 0.6) / (1.2 - 0.6))
    joint = next(r for r in found.tables[0].rows if r.cells.get("merge") == "none")
    assert joint.samples["merge/gap"][0] == pytest.approx((1.3 - 0.6) / (1.4 - 0.6))


def test_metrics_of_different_units_have_no_mean_and_less_may_be_better(tmp_path):
    write(
        tmp_path, "average", 0, (0.6, 0.4), headline={"segmentation": "miou", "edge": "loss"},
        directions={"segmentation": {"miou": "up"}, "edge": {"loss": "down"}},
        base={"segmentation": {"miou": 0.4}, "edge": {"loss": 2.0}},
        experts={"segmentation": {"miou": 0.8}, "edge": {"loss": 0.5}},
    )  # fmt: skip
    samples = report(tmp_path).tables[0].rows[-1].samples
    assert samples["merge/normalised"] == {0: pytest.approx((0.6 / 0.8 + 0.5 / 1.0) / 2)}
    assert "merge/mean" not in samples and "merge/gap" not in samples


def test_another_split_than_that_of_the_experts_measures_nothing(runs):
    assert not any(
        key.startswith("merge/") for r in report(runs, split="validation").tables[0].rows for key in r.samples
    )


def test_joint_training_without_a_merge_has_no_such_columns(tmp_path):
    write(tmp_path, "none", 0, (0.5, 0.5))
    (table,) = report(tmp_path).tables
    assert not any(column.group == "merge" for column in make_columns(table, table.headlines, ["survey"]))
