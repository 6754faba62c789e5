"""`runner tune` in a process of its own, with the stand-in for workers; says at the end whether torch was imported."""

from __future__ import annotations

import sys
from pathlib import Path

from runner.cli.main import main
from runner.launching import pool

if __name__ == "__main__":
    fake = str(Path(__file__).with_name("fake_worker.py"))
    pool.worker_command = lambda path: [sys.executable, fake, str(path)]
    code = main(["tune", *sys.argv[1:]])
    print("torch was imported" if "torch" in sys.modules else "no torch", file=sys.stderr)
    sys.exit(code)
