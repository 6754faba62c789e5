"""Terminal text, Markdown, CSV and LaTeX of one report."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from runner.config.derive import on_tasks
from runner.errors import UserError
from runner.reporting import markup, text
from runner.reporting.build import build
from runner.reporting.grid import choose_metrics
from runner.reporting.model import Metric, Report, Table
from runner.reporting.read import load
from tests.reporting.synthetic import make_config, write_run


@pytest.fixture(scope="module")
def found(sweep: Path) -> Report:
    return build(load([sweep]))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two settings with three seeds each: one is worse."""
    folder = tmp_path_factory.mktemp("told")
    for seed in (0, 1, 2):
        write_run(folder / f"a{seed}", make_config(seed=seed), rows=0)
        write_run(folder / f"b{seed}", make_config(["weighting=cagrad"], seed=seed), gain=0.4, rows=0)
    return build(load([folder]))


def headlines(table: Table) -> list[Metric]:
    return table.headlines


def draw(report: Report, width: int | None = None, **options: object) -> str:
    choice = {"metrics": headlines, "definitions": ["survey"], "paint": lambda words, _: words} | options
    return text.render(report, width=width, **choice)


def test_the_terminal_says_all_of_it(found):
    shown = draw(found)
    assert shown.startswith("9 runs: 6 completed, 1 running, 1 waiting, 1 failed\nsweep demo in ")
    assert "segmentation, depth, normals, edge on rooms (test)" in shown
    assert "all runs: mixture rooms" in shown and "weighting" not in shown.split("all runs:")[1].split("\n")[0]
    assert "OutOfMemoryError: CUDA out of memory" in shown and "step 150 of 300" in shown
    assert "  runner train -m +experiment=demo weighting=equal,cagrad,nash_mtl seed=0,1,2\n" in shown
    assert "waiting (1)" in shown and "weighting=nash_mtl seed=2" in shown
    assert "Δm survey: mean over tasks, one metric each, higher is better" in shown


def test_numbers_stand_under_their_headings(found):
    lines = draw(found).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("weighting"))
    for heading in ("miou ↑", "rmse ↓", "survey ↑"):
        end = lines[at].index(heading) + len(heading)
        rows = [line for line in lines[at + 2 :] if line.startswith(("single-task", "nash_mtl", "cagrad", "equal"))]
        assert len(rows) == 4
        for row in rows:
            assert row[end - 1].isalnum() or row[end - 1] in " *≈?", row
            assert row[end : end + 2].strip() == "", row


def test_a_narrow_terminal_gets_blocks_that_fit(found):
    shown = draw(found, width=70)
    sentences = f"all runs{shown.split('all runs')[1].split(chr(10) * 2)[0]}\n  mean ±{shown.split('  mean ±')[1]}"
    assert max(map(len, sentences.split("\n\n")[0].splitlines())) <= 70 and "\n    " in sentences
    table = shown.split("  mean ±")[0].split("\n\n", 2)[2]
    assert max(map(len, table.splitlines())) <= 70
    assert table.count("weighting    n") > 1
    for heading in ("miou ↑", "rmse ↓", "pixel_f_best ↑", "survey ↑", "wall time", "parameters"):
        assert shown.count(heading) == 1


def test_the_best_and_the_worse_are_told(told):
    shown = draw(told)
    rows = {line.split()[0]: line for line in shown.splitlines() if line.startswith(("cagrad ", "equal "))}
    assert rows["cagrad"].count("*") == 4 and rows["equal"].count("*") == 0 and "≈" not in rows["equal"]
    assert "* best, ≈ not distinguishable from it (paired t-test by seed, Holm-corrected" in shown


def test_runs_that_cannot_be_compared_are_said_to_be(tmp_path):
    write_run(tmp_path / "a", make_config(), rows=0)
    config = make_config()
    write_run(tmp_path / "b", on_tasks(config, ["segmentation", "depth"], "two"), rows=0)
    shown = draw(build(load([tmp_path])))
    assert "2 tables: runs of other tasks" in shown
    assert "\nsegmentation, depth on rooms (test)\n" in shown


def test_a_search_says_what_mattered(tmp_path):
    write_run(tmp_path / "jobs" / "000-aaaaaaaa", make_config(), rows=0)
    (tmp_path / "sweep.json").write_text('{"schema": 1, "name": "demo", "verb": "tune", "axes": {}, "jobs": []}')
    (tmp_path / "tune.json").write_text('{"objective": ["depth/rmse"], "importance": {"a": 0.2, "b": 0.8, "c": null}}')
    assert "importance for depth/rmse: b 80 %, a 20 %" in draw(build(load([tmp_path])))


def test_a_terminal_without_unicode(found):
    shown = draw(found, ascii_only=True)
    assert shown.replace("é", "").isascii() and "+-" in shown and "miou ^" in shown


def test_markdown_has_as_many_cells_as_headings(told):
    lines = markup.markdown(told, headlines, ["survey"]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    best = next(line for line in table if line.startswith("| cagrad"))
    assert best.count("**") == 8 and "±" in best


def test_markdown_keeps_strange_names_in_their_cells(tmp_path):
    for seed, name in ((0, "a|b"), (1, "<script>")):
        write_run(tmp_path / str(seed), make_config(trainer={"select": name, "max_steps": 1}), rows=0)
    shown = markup.markdown(build(load([tmp_path])), headlines, [])
    assert "a\\|b" in shown and "<script>" not in shown


def test_csv_has_full_numbers_and_every_definition(found):
    rows = list(csv.DictReader(io.StringIO(markup.comma_separated(found, headlines))))
    assert [row["kind"] for row in rows] == ["baseline", "published", "setting", "setting", "setting"]
    equal = rows[-1]
    spread = found.tables[0].rows[-1].spreads
    assert float(equal["segmentation/miou"]) == spread["segmentation/miou"].mean
    assert float(equal["delta_m/metric_mean std"]) == spread["Δm/metric_mean"].std
    assert (equal["weighting"], equal["n"], equal["seeds"]) == ("equal", "3", "0 1 2")
    assert float(equal["wall_s"]) == pytest.approx(spread["wall"].mean)
    assert rows[1]["depth/rmse"] == ""


def test_latex_is_a_table_of_booktabs(found):
    shown = markup.latex(found, headlines, ["survey"])
    for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\cmidrule(lr){3-3}", "\\multicolumn{1}{c}{segmentation}"):
        assert rule in shown
    assert "pixel\\_f\\_best" in shown and "nash\\_mtl" in shown
    body = [line for line in shown.splitlines() if line.endswith("\\\\")]
    assert len({line.count("&") for line in body[1:]}) == 1
    assert "Δ" not in "".join(line for line in shown.splitlines() if not line.startswith("%"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(told, tmp_path):
    body = markup.latex(told, headlines, ["survey"])
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "page.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-2000:]


AWKWARD = [
    "[depth,edge]", "*", "50%_of $5 & #1", "a^b~c\\d{e}", "<b>|x|", "λ=0.1, Ω, Α, ο", "ties×2 ± ≈ ↑↓ → … − ≤ µ °C",
    "Süß-Žluťoučký", "中文 \U0001f600 ﬁ", '"quoted" `it\'s`',
]  # fmt: skip


def test_latex_is_plain_whatever_the_names(told):
    for name in AWKWARD:
        shown = markup._tex(name)
        assert not shown.startswith(("[", "*")) and all(c < "\u0180" for c in shown), shown
    assert markup._tex("λ_Ω") == "$\\lambda$\\_$\\Omega$" and markup._tex("中") == "{}[U+4E2D]"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles_whatever_the_names(told, tmp_path):
    """Every name as a cell at the beginning of a row, and what the page then says."""
    rows = "\n".join(f"{markup._tex(name)} & $1$ \\\\" for name in AWKWARD)
    body = f"\\begin{{tabular}}{{lr}}\\toprule x & n \\\\\n{rows}\n\\bottomrule\\end{{tabular}}"
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "page.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"\n!" not in done.stdout, done.stdout.decode()[-2000:]
    if shutil.which("pdftotext"):
        said = subprocess.run(["pdftotext", "-layout", "page.pdf", "-"], cwd=tmp_path, capture_output=True, text=True)
        for words in ("[depth,edge]", "50%", "λ", "[U+4E2D]"):
            assert words in said.stdout, said.stdout


def test_latex_marks_what_cannot_be_told_from_the_best(told):
    row = next(row for row in told.tables[0].rows if row.label == "equal")
    verdict = row.verdicts["depth/rmse"]
    try:
        row.verdicts["depth/rmse"] = type(verdict)("close", 0.2, "paired")
        shown = markup.latex(told, headlines, [])
    finally:
        row.verdicts["depth/rmse"] = verdict
    assert shown.count("^{\\dagger}") == 1 and shown.count("\\mathbf") == 4


def test_metrics_can_be_chosen(found):
    (table,) = found.tables
    assert [m.key for m in choose_metrics(table, "miou,depth/abs_err")] == ["segmentation/miou", "depth/abs_err"]
    assert len(choose_metrics(table, "all")) == 14 and len(choose_metrics(table, "headline")) == 4
    with pytest.raises(UserError, match="no task has a metric 'moiu'") as caught:
        choose_metrics(table, "moiu")
    assert "did you mean 'miou'?" in str(caught.value)
