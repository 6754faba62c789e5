"""Pictures of a run: what is drawn, from which rows, and when nothing is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from runner.tracking.plots import curves, draw_conflicts, draw_losses, draw_weights, pair_means, write_plots
from runner.tracking.tracker import Tracker


def row(step, task, metric, value, split="train"):
    return {"step": step, "attempt": 1, "split": split, "task": task, "metric": metric, "value": value}


def rows_of(tasks=("a", "b", "c"), steps=(10, 20, 30), conflicts=True, weights=lambda step, k: step / 10 + k):
    rows = []
    for step in steps:
        for k, task in enumerate(tasks):
            rows += [row(step, task, "loss", 3.0 / step + k), row(step, task, "weight", weights(step, k))]
        for a, first in enumerate(tasks if conflicts else ()):
            for second in tasks[a + 1 :]:
                rows += [
                    row(step, f"{first}~{second}", "cosine", -0.5 + step / 40),
                    row(step, f"{first}~{second}", "conflict", 0.5),
                ]
    return rows + [row(steps[-1], task, "loss", 1.0, "validation") for task in tasks]


def test_curves_leave_missing_values_out():
    rows = [row(1, "a", "loss", 2.0), row(2, "a", "loss", None), row(3, "a", "loss", 1.0), row(3, "", "lr", 0.1)]
    assert curves(rows, "train", "loss") == {"a": ([1, 3], [2.0, 1.0])}
    assert curves(rows, "train", "lr") == {}


def test_means_of_pairs():
    found = pair_means(rows_of(), "cosine")
    assert found == {pair: pytest.approx(0.0) for pair in (("a", "b"), ("a", "c"), ("b", "c"))}


def test_every_picture_is_drawn_and_can_be_opened(tmp_path):
    written = write_plots(tmp_path / "plots", rows_of())
    assert [path.name for path in written] == ["losses.png", "weights.png", "conflicts.png"]
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) > 250
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {path.name for path in written}


def test_the_map_shows_each_pair_twice_and_no_task_against_itself():
    figure = draw_conflicts(rows_of())
    cosines, _, conflicts, _ = figure.axes  # colour bars are axes too
    assert [t.get_text() for t in cosines.get_yticklabels()] == ["a", "b", "c"]
    assert sorted(t.get_text() for t in conflicts.texts) == ["50%"] * 6
    assert len(cosines.texts) == 6


def test_the_curves_are_those_of_the_rows():
    axes = draw_weights(rows_of()).axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0], "c": [3.0, 4.0, 5.0],
    }  # fmt: skip
    losses = draw_losses(rows_of()).axes
    assert [axes.get_title() for axes in losses] == ["a", "b", "c"]
    assert [len(axes.lines) for axes in losses] == [2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([], []),
        (rows_of(("a",)), ["losses.png"]),
        (rows_of(conflicts=False), ["losses.png", "weights.png"]),
        (rows_of(conflicts=False, weights=lambda step, k: 1.0), ["losses.png"]),
        ([row(10, "a", "loss", 1.0), row(10, "b", "loss", 1.0)], []),
    ],
    ids=["no rows", "one task", "no gradients compared", "weights that never change", "one row"],
)
def test_nothing_is_drawn_where_there_is_nothing_to_see(rows, names, tmp_path):
    assert [path.name for path in write_plots(tmp_path / "plots", rows)] == names
    assert (tmp_path / "plots").exists() == bool(names)


def test_many_tasks_with_long_names():
    tasks = tuple(f"a_task_with_quite_a_long_name_{i}" for i in range(20))
    figure = draw_conflicts(rows_of(tasks))
    assert not figure.axes[0].texts and len(figure.axes[0].get_yticklabels()) == 20
    assert draw_weights(rows_of(tasks)).axes[0].get_legend() is None


def test_matplotlib_is_not_imported_before_a_picture_is_drawn():
    code = "import sys, runner.tracking.plots, runner.tracking; print('matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def quiet(tmp_path, **tracking):
    settings = {"wandb": {"mode": "disabled"}, "console": "quiet"} | tracking
    return Tracker(tmp_path, {"tracking": settings, "name": "x"}, 1, "id", 0)


def test_the_tracker_draws_what_it_recorded(tmp_path):
    tracker = quiet(tmp_path)
    for step in (1, 2):
        tracker.scalars(step, "train", {"a": {"loss": 1.0 / step, "weight": 1.0}})
    tracker.plots()
    tracker.close(0)
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["losses.png"]


def test_no_plots_if_not_wanted_and_no_failure_if_they_cannot_be_written(tmp_path, capsys):
    tracker = quiet(tmp_path / "a", plots=False) if (tmp_path / "a").mkdir() is None else None
    tracker.scalars(1, "train", {"a": {"loss": 1.0}})
    tracker.scalars(2, "train", {"a": {"loss": 1.0}})
    tracker.plots()
    tracker.close(0)
    assert not (tmp_path / "a" / "plots").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "plots").write_text("in the way")
    tracker = quiet(tmp_path / "b")
    tracker.scalars(1, "train", {"a": {"loss": 1.0}})
    tracker.scalars(2, "train", {"a": {"loss": 1.0}})
    tracker.plots()
    tracker.close(0)
    said = capsys.readouterr()
    assert "the plots cannot be drawn" in said.out + said.err
