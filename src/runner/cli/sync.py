"""`runner sync`: upload what was recorded offline to W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli import runs
from runner.cli.arguments import split_plain
from runner.errors import EXIT_DONE, EXIT_FAILED, UserError

HELP = """\
usage: runner sync [PATH…] [--dry-run] [--project NAME] [--entity NAME]

Uploads the offline W&B runs below the given folders (default: outputs): of single runs, of whole
sweeps, of everything. What is uploaded already is left out. A run that was interrupted is one run
in W&B: its pieces are sent together, in their order.

  --dry-run       print the `wandb sync` lines and stop
  --project NAME  another project than the one that was recorded
  --entity NAME   another user or team

examples:
  runner sync outputs/sweeps/demo-3fa9c1d2
  runner sync outputs/train/demo/20260101T120000Z-3fa9c1d2-ab12 --project my-project
  runner sync --dry-run
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    given, flags = split_plain(
        arguments, "sync", ["[PATH…]"], optional=1, flags=["--dry-run"], valued=["--project", "--entity"], many=True
    )
    folders = [runs.existing(path) for path in given or ["outputs"]]
    found = list(dict.fromkeys(path for folder in folders for path in runs_with_wandb(folder)))
    todo = {path: pieces for path in found if (pieces := unsynced(path))}
    if not todo:
        what = "every offline run is uploaded already" if found else "there is no W&B run"
        print(f"{what} in {', '.join(map(str, folders))}")
        return EXIT_DONE
    options = [word for flag in ("--project", "--entity") if flag in flags for word in (flag, flags[flag])]
    commands = {path: ["wandb", "sync", *options, *again(pieces), *map(str, pieces)] for path, pieces in todo.items()}
    if "--dry-run" in flags:
        _print(commands)
        return EXIT_DONE
    from runner.tracking.wandb_sink import has_key

    if not has_key():
        _print(commands)
        raise UserError(
            "W&B knows no account on this machine, so nothing was uploaded",
            "log in with `wandb login`, or set WANDB_API_KEY; the lines above do the same by hand",
            "runner doctor",
        )
    failed = [path for number, path in enumerate(todo, 1) if not _upload(path, commands[path], number, len(todo))]
    if failed:
        print(f"\n{len(failed)} of {len(todo)} runs were not uploaded:", file=sys.stderr)
        for path in failed:
            print(f"  {path}", file=sys.stderr)
        return EXIT_FAILED
    print(f"uploaded {len(todo)} runs")
    return EXIT_DONE


def runs_with_wandb(folder: Path) -> list[Path]:
    """The run directories at or below a folder that recorded something for W&B."""
    found = [folder] if runs.is_run(folder) else runs.find_runs(folder)
    return [path for path in found if any((path / "wandb").glob("offline-run-*"))]


def unsynced(path: Path) -> list[Path]:
    """The offline pieces of a run, one per attempt, in the order of their start; none when all are uploaded.

    W&B leaves a `.synced` file beside what it has sent. When a run went on after that, all of its pieces are sent
    again: they are one run, and W&B takes them in order.
    """
    pieces = sorted((path / "wandb").glob("offline-run-*"))
    return pieces if not all(map(_sent, pieces)) else []


def again(pieces: Sequence[Path]) -> list[str]:
    """The flag without which W&B passes over pieces that it has sent before; see `unsynced`."""
    return ["--include-synced"] if any(map(_sent, pieces)) else []


def _sent(piece: Path) -> bool:
    return any(piece.glob("*.wandb.synced"))


def _upload(path: Path, command: list[str], number: int, total: int) -> bool:
    print(f"{number} of {total}: {path}", flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}  # "offline" would upload nothing
    line = [sys.executable, "-m", "wandb", *command[1:]]
    return subprocess.run(line, env=environment, check=False).returncode == 0


def _print(commands: dict[Path, list[str]]) -> None:
    import shlex

    for command in commands.values():
        print(shlex.join(command))
