"""`runner report` as a user calls it: outputs, files, and errors one can act on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli.main import main
from tests.reporting.synthetic import make_config, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"20260101T120000Z-{seed}", make_config(seed=seed), ["+experiment=demo"])
    return tmp_path / "runs"


def test_a_folder_of_runs(folder, capsys):
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 runs: 2 completed") and "mean ± standard deviation over n seeds" in shown
    assert f"runner report {folder} --html report.html" in shown
    assert not list(folder.rglob("*.html"))


def test_a_page_where_it_is_wanted(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out


def test_a_sweep_gets_its_page(folder, capsys):
    (folder / "sweep.json").write_text('{"schema": 1, "name": "demo", "axes": {}, "jobs": []}')
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file() and "report.html" in capsys.readouterr().out
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--csv"]) == 0
    assert not (folder / "report.html").exists(), "who pipes CSV asked for nothing else"


def test_a_sweep_that_cannot_be_written_to_is_still_shown(folder, capsys):
    (folder / "sweep.json").write_text('{"schema": 1, "name": "demo", "axes": {}, "jobs": []}')
    (folder / "report.html").mkdir()
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2 runs" in shown and "note: the page cannot be written" in shown


@pytest.mark.parametrize(("flag", "start"), [("--markdown", "2 runs"), ("--csv", "table,kind"), ("--latex", "%")])
def test_formats_are_all_that_is_printed(folder, capsys, flag, start):
    assert main(["report", str(folder), flag]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(start) and "page" not in shown


def test_options_are_followed(folder, capsys):
    main(["report", str(folder), "--csv", "--metrics", "all"])
    assert "normals/median std" in capsys.readouterr().out
    main(["report", str(folder), "--metrics", "abs_err", "--split", "validation"])
    shown = capsys.readouterr().out
    assert "abs_err" in shown and "miou" not in shown and "(validation)" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["."], "there is no run in '.'"),
        ([], "PATH… is missing"),
        ([".", "--mardown"], "unknown flag '--mardown'"),
        ([".", "--csv", "--latex"], "--csv and --latex exclude one another"),
        ([".", "--delta-m", "survay"], "did you mean 'survey'?"),
        ([".", "--split", "train"], "--split: there is no split 'train'"),
        ([".", "--panels-mb", "much"], "--panels-mb: 'much' is not a size"),
        ([".", "--html"], "--html needs a value"),
    ],
)
def test_what_is_wrong_is_said(words, message, capsys):
    assert main(["report", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_wrong_options_are_said_all_at_once(capsys):
    assert main(["report", ".", "--delta-m", "x", "--split", "y", "--panels-mb=-1"]) == 2
    assert capsys.readouterr().err.count("error:") == 3


def test_a_page_that_cannot_be_written_is_an_error(folder, capsys):
    assert main(["report", str(folder), "--html", str(folder)]) == 2
    assert "--html:" in capsys.readouterr().err


def test_neither_torch_nor_hydra_is_needed(folder):
    code = (
        "import sys; from runner.cli.main import main;"
        f"main(['report', {str(folder)!r}, '--html', 'page.html']);"
        "print([m for m in ('torch', 'hydra', 'pandas', 'scipy.stats') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
