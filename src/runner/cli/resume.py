"""`runner resume`: go on with a run or a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from runner.cli.arguments import split_plain
from runner.cli.runs import open_run, open_sweep

HELP = """\
usage: runner resume DIR

Goes on with a run that was stopped, killed or failed, from its newest whole checkpoint, with the
configuration it was started with. The result is the same as without the interruption.
A completed run answers with its result. DIR may be a folder in which just one run is unfinished.

Of a sweep it runs whatever is not completed, waiting jobs too; one that was submitted to Slurm is
submitted again, without the jobs that are completed or still in the queue. A search goes on as if
its command were given again.

examples:
  runner resume outputs/train/demo/20260101T120000Z-3fa9c1d2-ab12
  runner resume outputs/train/demo
  runner resume outputs/sweeps/demo-3fa9c1d2

exit codes: 0 done, 1 the run failed, 2 there is nothing to resume, 75 stopped early, resumable
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (folder,), _ = split_plain(arguments, "resume", ["DIR"])
    place = open_sweep(folder)
    if place is not None and place.info()["verb"] == "tune":
        from runner.cli import tune

        return tune.go_on(place.path, place.info()["argv"])
    if place is not None:
        from runner.cli import sweep

        return sweep.go_on(place)
    run_dir = open_run(folder, "resume")
    from runner.launching import front

    return front.resume(run_dir)
