"""`runner cancel`: stop a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from runner.cli.arguments import split_plain
from runner.cli.runs import open_sweep
from runner.errors import EXIT_DONE, UserError

HELP = """\
usage: runner cancel SWEEP

Stops a sweep: what is in Slurm's queue is cancelled, a front end that runs it on this machine is
told to stop. Running jobs save first; `runner resume SWEEP` goes on with them later.

examples:
  runner cancel outputs/sweeps/demo-3fa9c1d2
  runner status outputs/sweeps/demo-3fa9c1d2
  runner resume outputs/sweeps/demo-3fa9c1d2
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (folder,), _ = split_plain(arguments, "cancel", ["SWEEP"])
    place = open_sweep(folder)
    if place is None:
        raise UserError(f"'{folder}' is not the directory of a sweep", "such as outputs/sweeps/NAME", "runner status")
    from runner.launching import slurm

    cancelled = slurm.cancel(place) if slurm.submissions(place) else 0
    if cancelled:
        print(f"cancelled {cancelled} jobs in Slurm's queue")
    elsewhere = []
    stopped = 0
    for host, pid in place.fronts():
        if host != socket.gethostname():
            elsewhere.append(f"process {pid} on {host}")
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            stopped += 1
            print(f"told process {pid} to stop: its running jobs save first")
    if elsewhere:
        raise UserError(f"the sweep also runs in {', '.join(elsewhere)}", "cancel it there")
    if not cancelled and not stopped:
        print(f"nothing of {place.id} is running or queued")
    return EXIT_DONE
