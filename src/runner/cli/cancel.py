"""`runner cancel`: stop a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.cli.arguments import split_plain
from runner.cli.runs import open_sweep
from runner.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from runner.launching.sweepdir import SweepDirectory

PATIENCE_S = 30.0
"""How long a front end may take to notice that it is to stop."""

HELP = """\
usage: runner cancel SWEEP

Stops a sweep: what is in Slurm's queue is cancelled, a front end that runs it on this machine is
told to stop. Running jobs save first; `runner resume SWEEP` goes on with them later. A search is
stopped likewise.

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
    from runner.launching import slurm_queue

    # First whoever would submit or start further jobs.
    driver = slurm_queue.cancel_driver(place)
    if driver:
        print("cancelled the driver of the search")
    stopped = _stop_fronts(place)
    cancelled = slurm_queue.cancel(place)
    if cancelled:
        print(f"cancelled {cancelled} jobs in Slurm's queue")
    elsewhere = [f"process {pid} on {host}" for host, pid in place.fronts() if host != socket.gethostname()]
    if elsewhere:
        raise UserError(f"the sweep also runs in {', '.join(elsewhere)}", "cancel it there")
    if not (driver or cancelled or stopped):
        print(f"nothing of {place.id} is running or queued")
    return EXIT_DONE


def _stop_fronts(place: SweepDirectory) -> int:
    """Tell the front ends on this machine to stop; where Slurm runs their jobs, wait until they have."""
    from runner.launching import slurm_queue

    mine = [pid for host, pid in place.fronts() if host == socket.gethostname()]
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            print(f"told process {pid} to stop: its running jobs save first")
    deadline = time.monotonic() + PATIENCE_S
    while mine and len(slurm_queue.queue(place)) and time.monotonic() < deadline:
        if not any(host == socket.gethostname() for host, _ in place.fronts()):
            break
        time.sleep(0.2)
    return len(mine)
