"""`runner tune`: search hyperparameters, one run per trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.arguments import split_hydra

HELP = """\
usage: runner tune [OVERRIDES…] [--dry-run] [--config-dir DIR]

Searches the keys that are given a space; each trial is a run below outputs/tune/NAME-HASH. It looks
at the validation split only. The same command goes on where it was stopped or killed, and a larger
tune.trials adds to it.

  KEY=a,b,c  KEY=choice(a,b)  KEY=range(1,9,2)   one of these (quote parentheses for the shell)
  KEY=interval(0,1)  KEY=int(interval(2,8))      a number between
  KEY=tag(log,interval(1e-5,1e-2))               the same, evenly in its logarithm
  tune.objective=relative    relative, pareto, TASK, TASK/METRIC, or [A,B] for a Pareto front
  tune.sampler=tpe           tpe, random, grid, nsga2;   tune.pruner=none|median|hyperband
  tune.trials=20 tune.hours=8 tune.seed=0 launch.jobs=2; `runner tune --cfg job` shows all keys
  launch=slurm               trials are array elements; tune.driver=slurm submits the search, too
  --dry-run                  show the space and the folder, write the scripts; run nothing

examples:
  runner tune +experiment=demo 'optimizer.lr=tag(log,interval(1e-5,1e-2))' tune.trials=30
  runner tune +experiment=demo weighting=equal,pcgrad optimizer.lr=1e-4,1e-3 tune.sampler=grid
  runner tune +experiment=demo trainer.batch_size=8,16,32 tune.objective=pareto launch.jobs=2

exit codes: 0 done, 1 no trial succeeded, 2 the command is wrong, 75 stopped and resumable
"""


def run(arguments: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """Run the verb; `argv` is the command to record, where that is not the one of `arguments`."""
    request = split_hydra(arguments, "tune")
    from runner.cli import sweep  # Hydra is imported from here on

    name = request.config_name or "tune"
    if request.flags:
        from runner.config.compose import compose

        composed = compose(name, request.overrides, request.config_dir)
        sweep.refuse(composed.problems)
        sweep.check_package(composed, request.flags)
        return sweep.hydra_answers(name, composed.overrides, request)
    from runner.cli import search

    return search.tune(name, request, list(argv or ["tune", *arguments]))


def go_on(folder: Path, argv: Sequence[str]) -> int:
    """Continue a search with the command it was last given, in the folder it is in now.

    Raises:
        UserError: the command does not lead there any more, as after a change of the configuration files.
    """
    kept = [word for word in argv[1:] if not word.lstrip("+").startswith("tune.dir=")]
    place = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return run([*kept, f"tune.dir='{place}'"], argv)
