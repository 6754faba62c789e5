"""Stands in for `runner.launching.worker` where a test is about processes, not about training: no torch, milliseconds.

What it does is in its run's configuration, under `name`: "ok", "fail", "slow" (until a stop signal), "deaf" (until
SIGKILL), "wait:FILE" (until FILE exists). Its environment is written to `environment.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from runner.files import write_json
from runner.launching.rundir import RunDirectory
from runner.launching.worker import _lock, _stop_with_parent


def main(path: Path) -> int:
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda n, _: stopped.append(n))
    if not _stop_with_parent():
        return 75
    run = RunDirectory.open(path)
    lock = _lock(path)
    if run.info()["status"] == "COMPLETED":
        return 0
    run.begin_attempt(0)
    (path / "environment.json").write_text(json.dumps(dict(os.environ)))
    print("working", flush=True)
    what, _, argument = str(run.config()["name"]).partition("/single/")[0].partition(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (
        what == "deaf" or (what == "slow" and not stopped) or (what == "wait" and not Path(argument).exists())
    ):
        if stopped and what == "wait":
            break
        time.sleep(0.005)
    if stopped:
        run.end_attempt("STOPPED", 3, "stopped by a signal")
        return 75
    if what == "fail":
        run.end_attempt("FAILED", message="the loss is not finite")
        return 1
    write_json(path / "result.json", {"split": "test", "tasks": {}, "headline": {}})
    run.end_attempt("COMPLETED", 5)
    lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
