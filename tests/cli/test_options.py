"""`ls`, `show`, `cp`: reading and owning options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.config import paths


def shipped() -> list[paths.Option]:
    return [option for group in paths.groups() for option in paths.options(group)]


def test_ls_has_a_line_for_every_option(runner):
    lines = runner("ls").out.splitlines()
    assert [line.split()[0] for line in lines] == [option.key for option in shipped()]
    assert all(option.summary in line for option, line in zip(shipped(), lines, strict=True))


def test_ls_of_a_group_shows_cost_and_paper(runner):
    out = runner("ls", "weighting").out
    assert out.splitlines()[0].split() == ["option", "what", "it", "is", "cost", "paper"]
    row = next(line for line in out.splitlines() if line.startswith("pcgrad"))
    assert "Yu et al. 2020" in row
    assert "K backward passes" in row


def test_ls_json_is_complete(runner):
    listed = json.loads(runner("ls", "--json").out)
    assert [f"{o['group']}/{o['option']}" for o in listed] == [option.key for option in shipped()]
    assert set(listed[0]) == {"group", "option", "summary", "paper", "cost", "run", "path"}
    assert all(Path(o["path"]).is_file() for o in listed)
    (only,) = [o for o in json.loads(runner("ls", "--json", "merge").out) if o["option"] == "none"]
    assert only["run"] == "runner train +experiment=demo merge=none"


def test_ls_on_a_terminal_groups_and_is_not_cut(runner, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    out = runner("ls").out
    assert "\033[1mweighting\033[0m" in out
    assert "…" not in runner("ls", "weighting").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in runner("ls").out


def test_show_prints_the_file(runner):
    assert runner("show", "weighting/pcgrad").out == paths.find("weighting/pcgrad").path.read_text()
    assert runner("show", "train").out == (paths.config_root() / "train.yaml").read_text()


def test_show_dims_comments_on_a_terminal_only(runner, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = runner("show", "weighting/pcgrad").out
    assert "\033[2m# PCGrad" in out
    assert "\n_target_: runner.weighting.pcgrad.PCGrad\n" in out


def test_cp_then_use(runner, tmp_path):
    answer = runner("cp", "weighting/pcgrad", "my")
    copy = Path("my/weighting/pcgrad.yaml")
    assert copy.read_text() == paths.find("weighting/pcgrad").path.read_text()
    assert answer.out == (
        "copied weighting/pcgrad to my/weighting/pcgrad.yaml\n"
        "  use it: runner train --config-dir my +experiment=demo weighting=pcgrad\n"
    )
    copy.write_text(copy.read_text().replace("scale: paper", "scale: tasks"))
    arguments = [
        "train",
        "--config-dir",
        "my",
        "+experiment=demo",
        "weighting=pcgrad",
        "--cfg",
        "job",
        "-p",
        "weighting",
    ]
    assert "scale: tasks" in runner(*arguments).out  # the user's option hides the shipped one
    assert "weighting/pcgrad" in runner("ls", "--config-dir", "my").out
    assert "scale: tasks" in runner("show", "weighting/pcgrad", "--config-dir", "my").out


@pytest.mark.parametrize("folder", ["my own", "my own/weighting", "my own/weighting/"])
def test_cp_into_the_folder_of_the_group(runner, folder):
    answer = runner("cp", "weighting/pcgrad", folder)
    assert Path("my own/weighting/pcgrad.yaml").is_file()
    assert "use it: runner train --config-dir 'my own' +experiment=demo weighting=pcgrad" in answer.out


def test_cp_says_how_the_copy_is_used(runner):
    """Into the group's folder, too; as the option's own example has it."""
    answer = runner("cp", "mixture/folders", "my/mixture/")
    assert answer.out.splitlines()[0] == "copied mixture/folders to my/mixture/folders.yaml"
    assert "runner train --config-dir my mixture=folders mixture.path=DIR" in answer.out
    answer = runner("cp", "mixture/sentences", "my/mixture/mine.yaml")
    assert "runner train --config-dir my mixture=mine backbone=bert" in answer.out


def test_cp_to_a_file_with_a_new_name(runner):
    answer = runner("cp", "experiment/demo", "my/experiment/first.yaml")
    assert "runner train --config-dir my +experiment=first" in answer.out
    assert runner("train", "-cd", "my", "experiment=first", "--cfg", "job").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weighting/pcgrad", "my"], "exists already"),
        (["weighting/pcgrad", "my/x.yaml"], "did you mean 'runner cp weighting/pcgrad my/weighting/x.yaml'?"),
        (["weighting/pcgrad", "my/weighting/x.yml"], "did you mean"),
        (["weighting/pcgrad", "file/below"], "cannot be written"),
        (["weighting/pcgrd", "my"], "did you mean 'pcgrad'?"),
        (["weighting/pcgrad"], "DEST is missing"),
        (["a", "b", "c"], "too many arguments: 'c'"),
        (["--force", "weighting/pcgrad", "my"], "unknown flag '--force'"),
    ],
)
def test_cp_never_overwrites_and_explains(runner, arguments, message):
    Path("my/weighting").mkdir(parents=True)
    Path("my/weighting/pcgrad.yaml").write_text("mine")
    Path("file").write_text("")
    before = sorted(map(str, Path().rglob("*")))
    answer = runner("cp", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert Path("my/weighting/pcgrad.yaml").read_text() == "mine"
    assert sorted(map(str, Path().rglob("*"))) == before
