from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.cli.completion import DIRECTORIES, SCRIPTS, candidates
from runner.config import paths

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("", None),
        ("train weigh", ["weighting=", "weighting."]),
        ("train weighting=pc", ["weighting=pcgrad"]),
        ("train -m weighting=equal,pc", ["weighting=equal,pcgrad"]),
        ("train +experiment=de", ["+experiment=demo"]),
        ("train +exp", ["+experiment="]),
        ("train experiment=de", ["experiment=demo"]),
        ("train see", ["seed="]),
        ("train weighting=pcgrad weigh", ["weighting."]),
        ("train trainer.max", ["trainer.max_steps="]),
        (
            "train weighting=pcgrad weighting.",
            [f"weighting.{key}=" for key in ("heads", "seed", "scale", "every", "mode", "shared")],
        ),
        ("train tracking.wandb.m", ["tracking.wandb.mode="]),
        ("train tracking=jsonl tracking.con", ["tracking.console="]),
        ("train --dr", ["--dry-run"]),
        ("train --cfg ", ["job", "hydra", "all"]),
        ("train --config-dir ", [DIRECTORIES]),
        ("train nothing=", []),
        ("train nothing.", []),
        ("validate --a", ["--all"]),
        ("ls wei", ["weighting"]),
        ("ls weighting ", []),
        ("show weigh", ["weighting/"]),
        ("show weighting/pc", ["weighting/pcgrad"]),
        ("show nothing/", []),
        ("cp weighting/pcgrad ", [DIRECTORIES]),
        ("diff weighting/pc", ["weighting/pcgrad", DIRECTORIES]),
        ("resume ", [DIRECTORIES]),
        ("status out", [DIRECTORIES]),
        ("eval ", [DIRECTORIES]),
        ("eval outputs sp", ["split="]),
        ("predict ", [DIRECTORIES]),
        ("predict outputs --i", ["--image"]),
        ("export ", [DIRECTORIES]),
        ("export outputs --t", ["--to"]),
        ("export outputs --to ", [DIRECTORIES]),
        ("rerun ", [DIRECTORIES]),
        ("rerun outputs --t", ["--tolerance"]),
        ("rerun outputs --against ", [DIRECTORIES]),
        ("tune tune.sam", ["tune.sampler="]),
        ("tune weighting=equal,pc", ["weighting=equal,pcgrad"]),
        ("tune --dr", ["--dry-run"]),
        ("completion b", ["bash"]),
        ("doctor ", []),
        ("nothing x", []),
    ],
)
def test_candidates(line, expected):
    found = candidates(line.split(" "))
    if expected is None:
        assert "train" in found
        assert "__complete" not in found
    else:
        assert found == expected


def test_every_option_can_be_completed():
    for group in paths.groups():
        assert candidates(["show", f"{group}/"]) == [option.key for option in paths.options(group)]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_is_valid(runner, shell, tmp_path):
    answer = runner("completion", shell)
    assert answer.out == SCRIPTS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its syntax is not checked")
    (tmp_path / "script").write_text(answer.out)
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize("shell", ["bsh", "powershell"])
def test_unknown_shells(runner, shell):
    answer = runner("completion", shell)
    assert answer.code == 2
    assert "valid: bash, fish, zsh" in answer.err


class Terminal:
    """An interactive bash on a terminal of its own, with `runner` on its PATH."""

    def __init__(self, folder: Path) -> None:
        command = folder / "bin" / "runner"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runner "$@"\n')
        command.chmod(0o755)
        environment = dict(os.environ) | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.send("bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; PS1='$ '\n")
        self.send("source <(runner completion bash); echo ready''now\n")
        assert "readynow" in self.read("readynow")

    def send(self, text: str) -> None:
        os.write(self.file, text.encode())

    def read(self, until: str, timeout: float = 20) -> str:
        """Output up to a text that must come."""
        seen, end = "", time.monotonic() + timeout
        while until not in seen and time.monotonic() < end:
            if select.select([self.file], [], [], 0.1)[0]:
                seen += os.read(self.file, 4096).decode(errors="replace")
        return seen

    def close(self) -> None:
        os.close(self.file)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    shell = Terminal(tmp_path_factory.mktemp("shell"))
    yield shell
    shell.close()


@needs_bash
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("runner tra", "runner train "),
        ("runner train weighting=pcg", "runner train weighting=pcgrad "),
        ("runner train -m weighting=equal,pcg", "runner train -m weighting=equal,pcgrad "),
        ("runner train +experiment=dem", "runner train +experiment=demo "),
        ("runner train trainer.max_s", "runner train trainer.max_steps="),
        ("runner show weighting/pcg", "runner show weighting/pcgrad "),
        ("runner resume bi", "runner resume bin/"),
    ],
)
def test_the_tab_key_in_a_real_bash(terminal, typed, completed):
    terminal.send(typed + "\t")
    seen = terminal.read(completed)
    terminal.send("\x15")  # clear the line for the next one
    assert completed in seen
