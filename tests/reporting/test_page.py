"""The page as a file: what is in it, that it needs nothing else, and that it stays small."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.reporting.build import build
from runner.reporting.page import curves, pictures, render
from runner.reporting.read import load, read_rows
from tests.reporting.synthetic import make_config, write_panel, write_run


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def html(sweep: Path) -> str:
    return render(build(load([sweep])))


class Tags(HTMLParser):
    """Every element's attributes, and whether open elements are closed."""

    VOID = ("meta", "br", "img", "input", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href", "action") and value]
        if tag not in self.VOID and tag not in ("p", "li"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("p", "li"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(html):
    tags = Tags()
    tags.feed(html)
    assert not tags.open and not tags.links
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|eval\(", html)


def test_the_table_stands_without_scripts(html):
    table = re.search(r"<table.*?</table>", html, re.DOTALL)[0]
    assert table.count('<tr class="setting"') == 3 and "nash_mtl" in table and "single-task" in table
    assert "±" in table and "higher is better" in table


def test_its_data_are_those_of_the_runs(html, sweep):
    data = data_of(html)
    (table,) = data["tables"]
    assert [row["label"] for row in table["rows"] if row["kind"] == "setting"] == ["nash_mtl", "cagrad", "equal"]
    run = next(sweep.glob("jobs/000-*"))
    number = next(i for i, r in enumerate(data["runs"]) if r["path"].endswith(run.name))
    series = next(s for s in table["curves"]["series"]["validation|depth|rmse"] if s[0] == number)
    rows = [r for r in read_rows(run) if (r["split"], r["task"], r["metric"]) == ("validation", "depth", "rmse")]
    assert table["curves"]["grids"][series[1]] == [r["step"] for r in rows]
    assert series[2] == pytest.approx([r["value"] for r in rows], rel=1e-3)
    cosine = [r["value"] for r in read_rows(run) if (r["task"], r["metric"]) == ("segmentation~depth", "cosine")]
    assert table["curves"]["pairs"]["cosine"][str(number)]["segmentation~depth"] == pytest.approx(
        np.mean(cosine), abs=6e-4
    )
    assert data["runs"][number]["command"] == "runner train +experiment=demo weighting=equal seed=0"


def test_configurations_are_differences_from_what_all_share(html):
    (table,) = data_of(html)["tables"]
    equal = next(row for row in table["rows"] if row["label"] == "equal")["config"]
    assert equal["weighting"] == "equal" and "optimizer.lr" not in equal
    assert ["optimizer.lr", "0.003"] in table["constant"]


def test_failed_running_and_waiting_runs_are_on_the_page(html):
    data = data_of(html)
    rest = {data["runs"][i]["state"]: data["runs"][i] for i in data["tables"][0]["rest"]}
    assert rest["failed"]["cause"].endswith("OutOfMemoryError: CUDA out of memory")
    assert rest["running"]["cause"] == "step 150 of 300"
    assert [run["state"] for run in data["broken"]] == ["waiting"]


def test_names_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    write_run(tmp_path / "a", make_config(name=evil), [f"name={evil}"], rows=0)
    write_run(tmp_path / "b", make_config(name=evil, sampler={"x": evil}), rows=0)
    html = render(build(load([tmp_path])))
    assert "<script>alert" not in html and html.count("</script>") == 2
    assert any(run["command"].endswith(f"'name={evil}'") for run in data_of(html)["runs"])


def test_a_page_of_nothing_completed(tmp_path):
    write_run(tmp_path / "run", make_config(), status="FAILED", message="no luck")
    assert "No run is completed yet" in render(build(load([tmp_path])))


def test_thinning_keeps_the_end_and_the_mean():
    steps, values = list(range(1, 1001)), [float(i % 7) for i in range(1000)]
    kept = curves.thin((steps, values), 50, average=True)
    assert len(kept[0]) == 50 and kept[0][-1] == 1000
    assert np.mean(kept[1]) == pytest.approx(np.mean(values))
    kept = curves.thin((steps, values), 50, average=False)
    assert len(kept[0]) == 50 and (kept[0][0], kept[0][-1]) == (1, 1000)
    assert all(values[step - 1] == value for step, value in zip(*kept, strict=True))
    assert curves.thin((steps[:5], values[:5]), 50, average=True) == (steps[:5], values[:5])


def test_a_curve_skips_what_is_not_a_number():
    kept = curves.thin(([1, 2, 3, 4], [1.0, math.nan, math.nan, math.nan]), 2, average=True)
    assert kept[1][0] == 1.0 and math.isnan(kept[1][1])
    assert curves.short(math.nan) is None and curves.short(0.123456) == 0.1235 and curves.short(3.0) == 3


def test_rows_of_another_writer_are_read_too(tmp_path):
    run = write_run(tmp_path / "run", make_config())
    fast = curves.read_series(run)
    rows = read_rows(run)
    (run / "metrics.jsonl").write_text("".join(json.dumps(dict(sorted(r.items()))) + "\n" for r in rows))
    assert curves.read_series(run) == fast and fast
    assert curves.read_series(tmp_path / "nowhere") == {}


def test_missing_values_are_gaps(tmp_path):
    run = write_run(tmp_path / "run", make_config())
    text = re.sub(
        r'("train", "task": "depth", "metric": "loss", "value": )[^}]+', r"\1null", (run / "metrics.jsonl").read_text()
    )
    (run / "metrics.jsonl").write_text(text)
    assert all(math.isnan(x) for x in curves.read_series(run)[("train", "depth", "loss")][1])
    assert "NaN" not in render(build(load([run])))


def test_panels_keep_to_their_budget(sweep, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sweep, copy)
    for run in copy.glob("jobs/*"):
        write_panel(run)
    report = build(load([copy]))
    (table,) = data_of(render(report, panels_mb=4))["tables"]
    assert [panel["label"] for panel in table["panels"]] == ["nash_mtl", "cagrad", "equal"]
    assert table["panels"][0]["image"].startswith("data:image/png;base64,")
    size = len(str(table["panels"][0]["image"]))
    (table,) = data_of(render(report, panels_mb=1.5 * size / 1e6))["tables"]
    assert len(table["panels"]) == 1 and table["panels_left_out"] == 2
    (table,) = data_of(render(report, panels_mb=0))["tables"]
    assert not table["panels"] and not table["panels_left_out"]


def test_a_large_panel_is_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (260, 1700, 3), dtype=np.uint8)
    path = tmp_path / "panel.png"
    Image.fromarray(noise).save(path)
    assert pictures.embed(path).startswith("data:image/webp")
    assert len(pictures.embed(path)) < path.stat().st_size
    path.write_bytes(path.read_bytes()[:300_000])
    assert pictures.embed(path) is None


def test_panels_in_words_are_a_table(tmp_path):
    run = write_run(tmp_path / "run", make_config(), rows=0)
    (run / "panels").mkdir()
    (run / "panels" / "test-step-00000300.md").write_text("| a | b |\n|---|---|\n| x \\| y | <b> |\n")
    (table,) = data_of(render(build(load([run]))))["tables"]
    assert table["panels"][0]["words"] == [["a", "b"], ["x | y", "<b>"]]
