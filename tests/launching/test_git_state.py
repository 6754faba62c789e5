"""The commit and the diff that a run writes down."""

from __future__ import annotations

import subprocess

from runner.launching import rundir


def test_a_diff_of_files_in_another_encoding(tmp_path, monkeypatch):
    """A file that is not UTF-8 in the checkout used to end every run before it started."""

    def git(*arguments: str) -> None:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    file = tmp_path / "code.py"
    file.write_bytes("# café\n".encode("latin-1"))
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    monkeypatch.setattr(rundir, "__file__", str(file))
    state, diff = rundir.git_state()
    assert state is not None
    assert (state["dirty"], diff) == (False, "")
    file.write_bytes("# cafés\n".encode("latin-1"))
    state, diff = rundir.git_state()
    assert state is not None
    assert state["dirty"]
    assert "+# caf�s" in diff
