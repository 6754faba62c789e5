from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runner.cli import ls, main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'\n  did you mean 'train'?"),
        (["Train"], "did you mean 'train'?"),
        (["seed=1"], "did you mean 'runner train seed=1'?"),
        (["--verbose"], "unknown verb '--verbose'"),
        (["help", "trian"], "did you mean 'train'?"),
    ],
)
def test_unknown_verbs(runner, arguments, message):
    answer = runner(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert answer.out == ""


def test_version(runner):
    from runner import __version__

    assert runner("--version").out == f"runner {__version__}\n"


def test_an_interrupt_is_one_line(runner, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ls, "run", interrupted)
    answer = runner("ls")
    assert (answer.code, answer.err) == (130, "\nerror: interrupted\n")


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """`runner ls` has a bug."""

    def bug(_):
        raise ZeroDivisionError("secret\nsecond line")

    monkeypatch.setattr(ls, "run", bug)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_bug_is_short_and_its_traceback_kept(runner, broken, tmp_path):
    answer = runner("ls")
    assert answer.code == 1
    lines = answer.err.splitlines()
    assert lines[0] == "error: unexpected ZeroDivisionError: secret"
    assert len(lines) == 3
    (kept,) = tmp_path.glob("runner-error-*.txt")
    assert str(kept) in lines[1]
    assert "Traceback" in kept.read_text()


def test_a_bug_shows_its_traceback_on_demand(broken, monkeypatch):
    monkeypatch.setenv("RUNNER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.main(["ls"])


def test_a_closed_pipe_is_no_error():
    """`runner ls | head -1`, with a reader that is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "runner", "ls"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""
    assert done.returncode == main.EXIT_PIPE


def test_errors_go_to_stderr_and_colours_only_to_terminals(runner, monkeypatch):
    answer = runner("ls", "nothing")
    assert answer.out == ""
    assert "\033" not in answer.err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[1;31merror:\033[0m" in runner("ls", "nothing").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in runner("ls", "nothing").err


def test_python_m_runner_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "runner", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, main.help_text())


def test_every_verb_has_a_module_with_help_and_run():
    folder = Path(main.__file__).parent
    for module, summary in main.VERBS.values():
        text = (folder / f"{module}.py").read_text()
        assert 'HELP = """' in text
        assert "def run(arguments: Sequence[str]" in text
        assert len(summary) <= 80
